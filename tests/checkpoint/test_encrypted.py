"""Encrypted checkpoints: who reads them, what is said without a key, and what becomes of changed ones."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import xxhash
from safetensors.torch import load as load_safetensors

import trainkit
from tests.encryption.keys import age_key, ssh_key
from tests.jobs import TOY, run
from trainkit import checkpoint
from trainkit.checkpoint import store
from trainkit.cli.main import main
from trainkit.encryption import IDENTITY_VARIABLE, Encryption
from trainkit.errors import CheckpointError
from trainkit.testing import run_ranks

MANIFEST, SECRET = "manifest.json", "manifest.json.age"
RANKS = [f"rank_{rank:05d}.safetensors.age" for rank in range(2)]


@pytest.fixture(autouse=True)
def _no_identity(monkeypatch):
    monkeypatch.delenv(IDENTITY_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    directory = tmp_path_factory.mktemp("keys")
    return age_key(directory), ssh_key(directory), age_key(directory, "stranger")


def _engine(runtime):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(60, 80), torch.nn.Linear(80, 300))
    return runtime.setup(network, torch.optim.AdamW(network.parameters()), ema_decay=0.5, name="network")


def _save(strategy, recipients, path, num_steps=3):
    runtime = trainkit.Runtime(
        strategy=strategy, device="cpu", tracker=trainkit.Tracker(), checkpoint=Encryption(recipients=recipients)
    )
    engine = _engine(runtime)
    for batch in runtime.batches(torch.randn(40, 60), batch_size=8, num_steps=num_steps):
        engine.backward(engine(batch.data).square().mean())
        engine.step()
    runtime.save(path, network=engine, step=num_steps, note="a secret note", metrics={"loss": 0.5})
    return engine.state_dict()["module"]


def _load(path, identity=None, strategy="ddp"):
    runtime = trainkit.Runtime(
        strategy=strategy, device="cpu", tracker=trainkit.Tracker(), checkpoint=Encryption(identity=identity)
    )
    engine = _engine(runtime)
    before = {name: tensor.clone() for name, tensor in engine.state_dict()["module"].items()}
    try:
        loaded = runtime.load(path, network=engine)
    except CheckpointError as error:
        after = engine.state_dict()
        assert all(torch.equal(after["module"][name], before[name]) for name in before)
        assert not after["optimizer"]
        return str(error)
    assert loaded.position == 24 and loaded.values["note"] == "a secret note"
    return engine.state_dict()["module"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, keys):
    """A checkpoint of two ranks, for an age and an SSH key; and its weights."""
    path = tmp_path_factory.mktemp("encrypted") / "checkpoints" / "step_00000003"
    weights = run_ranks(_save, 2, "fsdp", [key.recipient for key in keys[:2]], path)[0]
    assert sorted(entry.name for entry in path.iterdir()) == sorted([MANIFEST, SECRET, *RANKS])
    return path, weights


@pytest.mark.parametrize("which", [0, 1])
def test_each_recipient_reads_it_alone(saved, keys, which):
    path, weights = saved
    found = _load(path, keys[which].file)
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("strategy", "num_ranks"), [("fsdp", 4), ("zero1", 2), ("hsdp", 4), ("ddp", 2)])
def test_other_strategies_read_it(saved, keys, strategy, num_ranks):
    path, weights = saved
    found = run_ranks(_load, num_ranks, path, keys[0].file, strategy)[0]
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_without_a_key_or_with_a_strangers_it_says_whose(saved, keys):
    path, _ = saved
    for given in (None, keys[2].file):
        error = _load(path, given)
        assert f"is encrypted for {keys[0].recipient}, {keys[1].recipient}" in error
        assert "checkpoint.identity=FILE" in error and "TRAINKIT_IDENTITY=FILE" in error
        assert (keys[2].recipient in error) == (given is not None)
        os.environ.pop(IDENTITY_VARIABLE, None)


def test_nothing_but_a_few_facts_is_readable(saved, keys):
    path, weights = saved
    outside = checkpoint.read_outside(path)
    assert outside.keys() == {"format", "encrypted_for", "position", "values", "files"}
    assert outside["values"] == {"step": 3, "metrics": {"loss": 0.5}}
    content = b"".join(entry.read_bytes() for entry in path.iterdir())
    for secret in (b"a secret note", b"weight", b"exp_avg", b"network", weights["0.weight"].numpy().tobytes()[:16]):
        assert secret not in content
    for key in keys[:2]:
        assert key.file.read_bytes().split()[-1] not in content and str(key.file).encode() not in content


def test_a_strangers_program_opens_it(saved, keys):
    """By the library pyrage alone, as docs/encryption.md shows."""
    pyrage = pytest.importorskip("pyrage")
    path, weights = saved
    identity = pyrage.x25519.Identity.from_str(keys[0].file.read_text().split()[-1])
    manifest = json.loads(pyrage.decrypt((path / SECRET).read_bytes(), [identity]))
    files = {name: load_safetensors(pyrage.decrypt((path / name).read_bytes(), [identity])) for name in RANKS}
    for name, tensor in weights.items():
        entry = manifest["tensors"][f"network.module/{name}"]
        parts = [files[file][f"network.module/{name}"] for _, _, file in entry["parts"]]
        assert torch.equal(torch.cat(parts).view(entry["shape"]), tensor)


# -- faults ------------------------------------------------------------------------------------------------------------


def _with_right_sums(directory):
    """The manifest as somebody writes it who changes files, and their checksums with them."""
    manifest = json.loads((directory / MANIFEST).read_text())
    del manifest["sha256"]
    for name in manifest["files"]:
        content = (directory / name).read_bytes()
        manifest["files"][name] = {"num_bytes": len(content), "xxh3_128": xxhash.xxh3_128(content).hexdigest()}
    (directory / MANIFEST).write_text(json.dumps({**manifest, "sha256": store._sum_of(manifest)}))


def _cut(directory):
    file = directory / RANKS[0]
    file.write_bytes(file.read_bytes()[: -len(file.read_bytes()) % (1 << 16) or -9])


def _flip(directory, name=RANKS[1]):
    content = bytearray((directory / name).read_bytes())
    content[len(content) // 2] ^= 4
    (directory / name).write_bytes(content)


def _flip_in_manifest(directory):
    _flip(directory, SECRET)


def _append(directory):
    with (directory / RANKS[0]).open("ab") as file:
        file.write(bytes(20))


def _swap_ranks(directory):
    first, second = (directory / name for name in RANKS)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


@pytest.mark.parametrize("fault", [_cut, _flip, _flip_in_manifest, _append, _swap_ranks])
@pytest.mark.parametrize("sums_are_right", [False, True])
def test_a_changed_file_is_one_clear_error(saved, keys, tmp_path, fault, sums_are_right):
    damaged = tmp_path / "damaged"
    shutil.copytree(saved[0], damaged)
    fault(damaged)
    if sums_are_right:
        _with_right_sums(damaged)
    error = _load(damaged, keys[0].file)
    assert ".age" in error and "\n" not in error and len(error) < 400
    assert sorted(entry.name for entry in damaged.iterdir()) == sorted([MANIFEST, SECRET, *RANKS])


def test_files_of_two_checkpoints_are_not_mixed(saved, keys, tmp_path):
    """Both are for the same key, and each file is whole."""
    mixed, other = tmp_path / "mixed", tmp_path / "other"
    shutil.copytree(saved[0], mixed)
    run_ranks(_save, 2, "fsdp", [keys[0].recipient], other)
    shutil.copy(other / RANKS[1], mixed / RANKS[1])
    _with_right_sums(mixed)
    assert f"{RANKS[1]} is a file of another checkpoint or rank" in _load(mixed, keys[0].file)


def test_a_recipient_cannot_be_slipped_in(saved, keys, tmp_path):
    """An export with --encrypt would be encrypted for it."""
    damaged = tmp_path / "damaged"
    shutil.copytree(saved[0], damaged)
    manifest = json.loads((damaged / MANIFEST).read_text())
    manifest["encrypted_for"].append(keys[2].recipient)
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    _with_right_sums(damaged)
    assert "is for other recipients than manifest.json says" in _load(damaged, keys[0].file)


def test_every_rank_hears_of_a_changed_file(saved, keys, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(saved[0], damaged)
    _flip(damaged)
    _with_right_sums(damaged)
    errors = run_ranks(_load, 2, damaged, keys[0].file, "fsdp")
    assert all(isinstance(error, str) and RANKS[1] in error for error in errors)


KILLED = """
import sys, torch, trainkit
from trainkit.encryption import Encryption
runtime = trainkit.Runtime(strategy="single", device="cpu", tracker=trainkit.Tracker(),
    checkpoint=Encryption(recipients=[sys.argv[2]]))
module = torch.nn.Linear(8000, 8000)
engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
print("saving", flush=True)
runtime.save(sys.argv[1], network=engine)
"""


def test_a_save_that_is_killed_is_no_checkpoint(keys, tmp_path):
    path = tmp_path / "checkpoints" / "step_00000001"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), keys[0].recipient], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        while not any((tmp_path / "checkpoints").rglob("rank_*")):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert not path.exists(), "the save was faster than the kill"
    (half,) = (tmp_path / "checkpoints").rglob("rank_*")
    assert half.read_bytes()[:21] == b"age-encryption.org/v1"[: half.stat().st_size]
    with pytest.raises(CheckpointError, match="no complete"):
        checkpoint.find(tmp_path)


# -- commands ----------------------------------------------------------------------------------------------------------


def _run(capsys, *arguments):
    os.environ.pop(IDENTITY_VARIABLE, None)  # a command is a process of its own
    code = main(["checkpoint", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_commands_without_the_key(saved, keys, capsys, tmp_path):
    path, _ = saved
    assert "encrypted" in _run(capsys, "ls", path.parent.parent)[1]
    code, out, _ = _run(capsys, "show", path)
    assert code == 0 and f"encrypted for {keys[0].recipient}" in out and "loss 0.5" in out and "AdamW" not in out
    code, out, _ = _run(capsys, "verify", path)
    assert code == 0 and "whole by its checksums" in out
    for command in (["show", path, "--tensors"], ["consolidate", path, "--output", tmp_path / "x"]):
        code, _, err = _run(capsys, *command)
        assert code == 2 and "is encrypted for" in err and "--identity FILE" in err and err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_commands_with_the_key(saved, keys, capsys, tmp_path):
    path, weights = saved
    own = ["--identity", keys[1].file]
    code, out, _ = _run(capsys, "show", path, "--tensors", *own)
    assert code == 0 and "network.module/0.weight F32 [80, 60]" in out
    assert ", and as it was encrypted" in _run(capsys, "verify", path, *own)[1]
    output = tmp_path / "weights.safetensors"
    code, out, _ = _run(capsys, "consolidate", path, "--output", output, "--recipient", keys[2].recipient, *own)
    assert code == 0 and f"{output}.age" in out and not output.exists()
    with trainkit.encryption.AgeReader(tmp_path / f"{output.name}.age", keys[2].identities) as file:
        found = load_safetensors(bytes(file.read(0, file.num_bytes)))
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_verify_with_the_key_sees_a_clever_change(saved, keys, capsys, tmp_path):
    damaged = tmp_path / "step_00000003"
    shutil.copytree(saved[0], damaged)
    _flip(damaged)
    assert _run(capsys, "verify", damaged)[0] == 1
    _with_right_sums(damaged)
    assert _run(capsys, "verify", damaged)[0] == 0
    code, out, _ = _run(capsys, "verify", damaged, "--identity", keys[0].file)
    assert code == 1 and f"{RANKS[1]} was changed" in out


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_run_writes_the_path_of_its_key_nowhere(keys, tmp_path, capfd):
    run_dir = tmp_path / "run"
    given = [f"checkpoint.recipients=[{keys[0].recipient}]", f"checkpoint.identity={keys[0].file}", "save_every=5"]
    done = run([*TOY, f"run_dir={run_dir}", "tracking=default", *given])
    assert done.returncode == 0, done.stderr
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if bytes(keys[0].file) in path.read_bytes()] == []
    assert "checkpoint.identity=FILE" in (run_dir / "manifest.json").read_text()
    *_, newest = checkpoint.step_directories(run_dir / "checkpoints")
    (newest / RANKS[0]).write_bytes(b"")
    recipe = trainkit.load_recipe(run_dir, [f"checkpoint.identity={keys[0].file}", "device=cpu"], trust=True)
    recipe.runtime.close()
    assert f"passed over: {newest / RANKS[0]} has 0 bytes instead of" in capfd.readouterr().err
