"""`trainkit reproduce`, `diff` and `manifest container`: a run is made again, and planted changes are named."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.jobs import ROOT, TOY, run
from tests.recipes.finetuning import reviews
from trainkit import manifest
from trainkit.cli.main import main
from trainkit.errors import ConfigError, UntrustedError
from trainkit.manifest import code
from trainkit.reproduction import pinned
from trainkit.reproduction.again import differences_here, prepare

SMALL = [
    "recipe=bert_finetune", "data.vocab_size=150", "recipe.model.hidden_size=16", "recipe.model.num_layers=1",
    "recipe.model.num_heads=2", "recipe.model.feed_forward_size=32", "recipe.batch_size=8", "recipe.num_steps=20",
    "evaluate_every=10", "save_every=10", "device=cpu", "tracking=none", "tracking.jsonl=true",
]  # fmt: skip


def trainkit(*arguments):
    return run(arguments, script=ROOT / "trainkit" / "cli" / "main.py", timeout_s=240)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run on two files of text, and the folder it is in."""
    folder = tmp_path_factory.mktemp("original")
    reviews(folder / "reviews.csv")
    done = trainkit("train", *SMALL, f"data.path={folder}/reviews.csv", f"run_dir={folder}/run", "save_every=5")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_whole_run_has_the_same_bits(original, tmp_path):
    done = trainkit("reproduce", original, "--all", "--to", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert "what differs here from" in done.stderr and ": nothing" in done.stderr
    assert "the same bits: 7 recorded steps up to step 20" in done.stdout
    found = json.loads((tmp_path / "again" / "reproduction.json").read_text())
    assert found["comparison"]["result"] == "same bits" and found["differences"] == []
    results = [json.loads((path / "result.json").read_text())["metrics"] for path in (original, tmp_path / "again")]
    assert results[0] == results[1]
    compared = trainkit("diff", original, tmp_path / "again")
    (loss,) = (line.split() for line in compared.stdout.splitlines() if line.split()[:1] == ["loss"])
    assert compared.returncode == 0 and loss[1] == "20" and loss[-1] == "0.0e+00"


def test_a_few_steps_stop_there_and_leave_the_schedule(original, tmp_path):
    done = trainkit("reproduce", original, "--steps", "4", "--to", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert "the same bits: 4 recorded steps up to step 4" in done.stdout
    assert not (tmp_path / "again" / "checkpoints").exists() and not (tmp_path / "again" / "result.json").exists()


@pytest.mark.parametrize("here", [None, "7"])
def test_threads_that_processes_are_told_are_no_difference(original, monkeypatch, here):
    if here is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", here)
    found = differences_here(original, prepare(original).config)
    assert "OMP_NUM_THREADS" not in [difference.name for difference in found]


def test_another_seed_is_named(original, tmp_path):
    done = trainkit("reproduce", original, "--steps", "2", "--to", tmp_path / "again", "seed=1")
    assert done.returncode == 1 and "parted at step 1: other samples were drawn" in done.stdout
    assert "configuration: seed 0 -> 1; can change the initial weights" in done.stdout


def test_a_file_of_data_that_changed_is_named(original, tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text((original.parent / "reviews.csv").read_text().replace("great", "awful"))
    backup = (original.parent / "reviews.csv").read_bytes()
    try:
        shutil.copy(path, original.parent / "reviews.csv")
        done = trainkit("reproduce", original, "--steps", "2", "--to", tmp_path / "again")
    finally:
        (original.parent / "reviews.csv").write_bytes(backup)
    assert done.returncode == 1, done.stdout
    assert "data: " in done.stdout and "reviews.csv" in done.stdout and "parted at step 1: the batch has" in done.stdout


def test_a_line_of_code_and_a_package_that_changed_are_named(original, tmp_path):
    copy = shutil.copytree(original, tmp_path / "run")
    found = json.loads((copy / "manifest.json").read_text())
    found["code"]["modules"]["trainkit_recipes.bert.model"] = "0" * 64
    found["environment"]["packages"]["numpy"]["version"] = "1.0"
    (copy / "manifest.json").write_text(json.dumps(found))
    done = trainkit("reproduce", copy, "--compare-only")
    assert done.returncode == 0
    assert "trainkit_recipes.bert.model" in done.stdout and "anything" in done.stdout
    assert "numpy" in done.stdout and "batches" in done.stdout
    assert not (tmp_path / "run_again").exists(), "nothing was trained"


@pytest.mark.parametrize("world_size", [pytest.param(2, marks=pytest.mark.nightly), 4])
def test_a_run_of_ones_own_recipe_on_several_ranks(tmp_path, world_size):
    run_dir = tmp_path / "run"
    assert run([*TOY, f"run_dir={run_dir}", "tracking.jsonl=true"], world_size).returncode == 0
    refused = trainkit("reproduce", run_dir, "--steps", "8")
    assert refused.returncode == 2 and "--trust" in refused.stderr
    done = trainkit("reproduce", run_dir, "--steps", "8", "--trust")
    assert done.returncode == 0, done.stderr
    assert "the same bits: 5 recorded steps up to step 8" in done.stdout
    one = trainkit("reproduce", run_dir, "--steps", "8", "--trust", "--processes", "1", "--to", tmp_path / "one")
    assert one.returncode == 0 and "the same" in one.stdout, one.stdout
    assert f"processes: num_ranks {world_size} -> 1" in one.stdout or "the same bits" in one.stdout


def test_what_cannot_be_made_again(original, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(ConfigError, match="is not empty: give another directory"):
        prepare(original, to=tmp_path / "full").write(None)
    copy = tmp_path / "run"
    shutil.copytree(original, copy)
    found = json.loads((copy / "manifest.json").read_text())

    def changed(part, **facts):
        (copy / "manifest.json").write_text(json.dumps({**found, part: {**found[part], **facts}}))

    changed("training", num_ranks=16, num_ranks_per_host=8)
    with pytest.raises(ConfigError, match="had 16 ranks, 8 a host: give --processes"):
        prepare(copy)
    assert prepare(copy, num_ranks=2).num_ranks == 2
    changed("composed", recipe={"_target_": "os.system"})
    with pytest.raises(UntrustedError):
        prepare(copy)
    (copy / "manifest.json").write_text(json.dumps({**found, "composed": {}}))
    with pytest.raises(ConfigError, match="was not made by a configuration: start its script again"):
        prepare(copy)
    for given in (["--steps", "0"], ["--processes", "0"]):
        assert main(["reproduce", str(original), *given]) == 2


def test_what_cannot_be_the_same_is_said(original, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(original, copy)
    found = json.loads((copy / "manifest.json").read_text())
    found["configuration"]["minutes"] = 5
    found["training"] |= {"device": "NVIDIA H100", "deterministic": False}
    found["history"] = [{"num_ranks": 1, "code_sha256": "a"}, {"num_ranks": 2, "code_sha256": "b"}]
    (copy / "manifest.json").write_text(json.dumps(found))
    notes = " ".join(prepare(copy).notes)
    for text in ("minutes=5", "deterministic=false on a GPU", "another number of ranks", "other code"):
        assert text in notes
    (copy / "config.yaml").write_text("seed: 3\n")
    assert [difference.name for difference in prepare(copy).changed] == ["minutes", "config.yaml"]


def test_only_an_edited_configuration_counts_as_edited(original, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(original, copy)
    found = json.loads((copy / "manifest.json").read_text())
    config = {**yaml.safe_load((copy / "config.yaml").read_text()), "more": {4: 400, 8: 1e-5}}  # numbers for keys
    (copy / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (copy / "manifest.json").write_text(json.dumps({**found, "configuration": config}))
    assert "config.yaml" not in [difference.name for difference in prepare(copy).changed]
    for edited in ("seed: 3\n", "a: [\n", "day: 2026-01-01\n"):
        (copy / "config.yaml").write_text(edited)
        assert "config.yaml" in [difference.name for difference in prepare(copy).changed]


def test_a_container_from_a_manifest(original, tmp_path, capsys):
    assert main(["manifest", "container", str(original), str(tmp_path / "container")]) == 0
    written = tmp_path / "container"
    lines = (written / "requirements.txt").read_text().splitlines()
    packages = manifest.read(original)["environment"]["packages"]
    assert f"torch=={packages['torch']['version']}" in lines[:4]
    assert not [line for line in lines if line.startswith(("trainkit", "pytest=="))]
    docker = (written / "Dockerfile").read_text()
    copied = [word for line in docker.splitlines() if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"requirements.txt", "trainkit", "manifest.json", "*.jsonl", "reproduce.sh"} == {*copied}
    cube = yaml.safe_load((written / "mlcube.yaml").read_text())
    assert cube["tasks"]["reproduce"]["parameters"]["outputs"] == {
        "results": {"type": "directory", "default": "results"}
    }
    assert cube["tasks"]["reproduce"]["entrypoint"] == "/run/reproduce.sh"
    assert "docker build" in capsys.readouterr().out
    (tmp_path / "trainkit").write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    (tmp_path / "trainkit").chmod(0o755)
    typed = subprocess.run(
        [written / "reproduce.sh", "reproduce", "--data_dir=/my data", "--results=/out"],
        capture_output=True, text=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True,
    )  # fmt: skip
    assert typed.stdout == "reproduce|original|--to|/out/again|data.path=/my data/reviews.csv|"
    assert main(["manifest", "container", str(original), str(written)]) == 2


def test_the_steps_that_make_an_environment(original, tmp_path, monkeypatch):
    typed: list[list[str]] = []
    said: list[str] = []

    def note(command, failure):
        typed.append(command)
        if "venv" in command:
            (tmp_path / "env" / "bin").mkdir(parents=True)
            (tmp_path / "env" / "bin" / "python").touch()
        if "archive" in command:
            shutil.make_archive(command[-2].removesuffix(".tar"), "tar", tmp_path / "env" / "bin")

    monkeypatch.setattr(pinned, "_run", note)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    python = pinned.build(original, tmp_path / "env", trust=True, report=said.append)
    assert python == tmp_path / "env" / "bin" / "python"
    assert [command[0] for command in typed[:2]] == [sys.executable, str(python)]
    assert "--no-deps" in typed[1] and any("--no-build-isolation" in command for command in typed)
    num = len(typed)
    assert pinned.build(original, tmp_path / "env", trust=True, report=said.append) == python
    assert len(typed) == num and "uses the environment" in said[-1]


def test_uncommitted_changes_of_others_need_trust(original, tmp_path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(original, copy)
    found = json.loads((copy / "manifest.json").read_text())
    found["code"]["trainkit"]["installed"] = "editable"
    found["code"]["repositories"] = {"/there": {"commit": "HEAD", "diff": "code.diff"}}
    (copy / "manifest.json").write_text(json.dumps(found))
    found["code"]["repositories"]["/there"]["commit"] = "0" * 40
    monkeypatch.setattr(code, "has_commit", lambda root, commit: commit == "0" * 40)
    (copy / "manifest.json").write_text(json.dumps(found))
    with pytest.raises(UntrustedError, match=r"code\.diff, changes to the code that were not committed"):
        pinned.build(copy, tmp_path / "env", trust=False, report=print)
    monkeypatch.setattr(code, "has_commit", lambda root, commit: False)
    with pytest.raises(ConfigError, match="which no repository here has: go to a checkout"):
        pinned.build(copy, tmp_path / "env", trust=True, report=print)
    assert not (tmp_path / "env").exists()
