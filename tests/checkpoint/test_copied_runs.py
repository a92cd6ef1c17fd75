"""Runs whose machine is gone: another one resumes from the copies in a store."""

import os
import signal

import pytest
import torch

from tests.jobs import TOY, newest_tensors, run, run_until
from tests.storage.servers import NO_MOTO, moto, s3
from trainkit import checkpoint
from trainkit.checkpoint.copies import Copies
from trainkit.cli.main import main
from trainkit.storage import locate

ARGUMENTS = [*TOY, "recipe.num_steps=120", "save_every=10", "evaluate_every=30", "log_every=1", "deterministic=true"]


@pytest.fixture(scope="module")
def port():
    if moto() is None:
        pytest.skip(NO_MOTO)
    with s3() as port:
        yield port


@pytest.fixture
def store(request, tmp_path, monkeypatch):
    """The URL of a folder in a store."""
    if request.param == "file":
        return f"file://{tmp_path}/store"
    from pyarrow import fs

    endpoint = f"http://127.0.0.1:{request.getfixturevalue('port')}"
    values = {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1"}
    values |= {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "very-secret"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    bucket = f"b-{os.urandom(4).hex()}"
    fs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True).create_dir(bucket)
    return f"s3://{bucket}/runs/toy"


@pytest.mark.parametrize(("store", "ranks"), [("s3", 2), ("file", 4)], indirect=["store"])
def test_a_run_goes_on_elsewhere_with_the_same_bits(tmp_path, store, ranks):
    whole = run([*ARGUMENTS, f"run_dir={tmp_path / 'whole'}"], ranks)
    assert whole.returncode == 0, whole.stderr
    copies = Copies(locate(store))
    killed = run_until(
        lambda: len(copies.steps()) == 2,
        [*ARGUMENTS, f"run_dir={tmp_path / 'a'}", f"copy_to={store}"],
        ranks,
    )
    assert killed, "the job ended before it could be killed"
    newest = copies.steps()[-1]
    elsewhere = run([*ARGUMENTS, f"run_dir={tmp_path / 'b'}", f"copy_to={store}"], ranks)
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert f"copying {copies.folder.shown}/checkpoints/{newest}, " in elsewhere.stdout
    assert (
        f"resumed after step {int(newest[5:])}" in elsewhere.stdout
        and f"copied to {copies.folder.shown}" in elsewhere.stdout
    )
    expected, found = newest_tensors(tmp_path / "whole"), newest_tensors(tmp_path / "b")
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    steps = [path.name for path in checkpoint.step_directories(tmp_path / "b" / "checkpoints")]
    assert copies.steps()[-1] == steps[-1] == "step_00000120"
    assert "very-secret" not in elsewhere.stdout + elsewhere.stderr


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_told_run_is_copied_before_it_ends(tmp_path, store, capsys):
    copies = Copies(locate(store))
    told = run(
        [*ARGUMENTS, "recipe.num_steps=100000", "save_every=null", f"run_dir={tmp_path / 'a'}", f"copy_to={store}"],
        2,
        once=lambda: (tmp_path / "a" / "metrics.jsonl").is_file(),
        act=lambda pids: os.kill(pids[1], signal.SIGTERM),
    )
    assert told.returncode == 0 and "stopped after step" in told.stdout, told.stderr
    [saved] = checkpoint.step_directories(tmp_path / "a" / "checkpoints")
    assert copies.steps() == [saved.name]
    assert main(["checkpoint", "ls", store]) == 0 and saved.name in capsys.readouterr().out
    assert main(["checkpoint", "fetch", store, "--to", str(tmp_path / "here")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].endswith(f"{saved.name}: whole; next: trainkit evaluate {tmp_path / 'here'}")
    assert newest_tensors(tmp_path / "here").keys() == newest_tensors(tmp_path / "a").keys()
    assert main(["checkpoint", "verify", store]) == 2
    advice = f"{store} is in a store; type: trainkit checkpoint fetch {store} --to DIRECTORY, and give DIRECTORY"
    assert advice in capsys.readouterr().err
    started = run([*TOY, f"run_dir={tmp_path / 'c'}", f"resume={store}", "recipe.num_steps=10"], None)
    assert started.returncode == 0 and f"/c/fetched/{saved.name}" in started.stdout, started.stderr
