"""manifest.json of a run: what is in it, what is not, and how it grows."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import trainkit
from tests.counting import Counting
from tests.jobs import TOY, run
from trainkit import checkpoint, manifest
from trainkit.errors import DataError
from trainkit.manifest import code, environment
from trainkit.testing import run_ranks


def _fit(run_dir, num_steps=4, **options):
    runtime = trainkit.Runtime(device="cpu", run_dir=run_dir, tracker=trainkit.Tracker())
    trainkit.Trainer(Counting(runtime, range(9), num_steps), config={"seed": 0}, **options).fit()
    return runtime.ranks.rank


def test_packages_are_those_that_pip_lists():
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = {environment.normalized(row["name"]): row["version"] for row in json.loads(listed.stdout)}
    assert {name: facts["version"] for name, facts in environment.packages().items()} == expected
    needed = environment.needed(["torch"])
    assert {"torch", "sympy", "mpmath"} <= {*needed} and "trainkit" not in needed


def test_packages_inside_of_packages_are_not_installed(tmp_path, monkeypatch):
    """`import setuptools`, as torch.compile does, puts its copies of packages on the path."""
    for folder in ("setuptools/_vendor/in_setuptools-1.0.dist-info", "beside-2.0.dist-info"):
        (tmp_path / folder).mkdir(parents=True)
        name, version = folder.rpartition("/")[2].removesuffix(".dist-info").split("-")
        (tmp_path / folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path / "setuptools" / "_vendor")
    monkeypatch.syspath_prepend(tmp_path)
    found = environment.packages.__wrapped__()
    assert found["beside"] == {"version": "2.0"} and "in-setuptools" not in found and "torch" in found


def test_variables_without_what_may_be_secret(monkeypatch):
    for name in ("NCCL_DEBUG", "OMP_NUM_THREADS", "TRAINKIT_IDENTITY", "TORCH_API_TOKEN", "HOME_OF_MINE"):
        monkeypatch.setenv(name, "value")
    assert {"NCCL_DEBUG", "OMP_NUM_THREADS"} <= environment.variables().keys()
    assert environment.variables().keys().isdisjoint({"TRAINKIT_IDENTITY", "TORCH_API_TOKEN", "HOME_OF_MINE"})


def test_modules_are_ours_and_the_users():
    found = code.modules()
    path = trainkit.runtime.__file__
    assert found["trainkit.runtime"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert "tests.counting" in found
    assert not [name for name in found if name.partition(".")[0] in ("torch", "numpy", "json", "pytest", "_pytest")]
    assert code.modules_by_name(found) | found == found, "what is found by name is what was imported"
    assert {"trainkit.runtime", "tests.counting"} <= code.modules_by_name(found).keys()


def test_modules_that_a_package_wrote_are_not_the_users(tmp_path, monkeypatch):
    """torch.compile imports each kernel that it wrote into its cache as a module of torch."""
    for name in ("torch._inductor.runtime.compile_tasks.c0ffee", "user_module_of_a_test"):
        path = tmp_path / f"{name.rpartition('.')[2]}.py"
        path.write_text("")
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setattr(sys.modules[name], "__file__", str(path), raising=False)
    found = code.modules()
    assert "user_module_of_a_test" in found and not [name for name in found if name.startswith("torch")]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_run_and_its_checkpoints_hold_one(tmp_path, world_size):
    run_ranks(_fit, world_size, tmp_path / "run")
    found = manifest.read(tmp_path / "run")
    assert found["training"]["num_ranks"] == world_size and found["training"]["seed"] == 0
    assert found["configuration"] == {"seed": 0}
    assert found["environment"]["packages"]["torch"]["version"] == torch.__version__
    assert found["run"]["status"] == "finished" and found["run"]["name"] == "run"
    (start,) = found["history"]
    assert (start["step"], start["last_step"], start["status"], start["resumed"]) == (0, 4, "finished", None)
    stored = checkpoint.read_manifest(checkpoint.find(tmp_path / "run"))["values"]["manifest"]
    for part in ("code", "configuration", "data", "hardware", "training"):
        assert stored[part] == found[part] or part == "code"
    assert {*stored["code"]["modules"].items()} <= {*found["code"]["modules"].items()}


def test_a_run_that_is_not_there_is_called_so(tmp_path):
    with pytest.raises(DataError, match="there is no such directory"):
        manifest.read(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        manifest.read(tmp_path)


def test_history_says_who_resumed_what(tmp_path):
    _fit(tmp_path / "run", 4)
    _fit(tmp_path / "run", 8)
    first, second = manifest.read(tmp_path / "run")["history"]
    assert first["last_step"] == 4 and first["status"] == "finished"
    assert second["resumed"] == str(tmp_path / "run" / "checkpoints" / "step_00000004")
    assert (second["step"], second["last_step"]) == (4, 8)
    assert first["code_sha256"] and first["environment_sha256"] == second["environment_sha256"]


def test_a_run_that_is_killed_leaves_a_manifest_that_says_so(tmp_path):
    arguments = [*TOY, f"run_dir={tmp_path / 'run'}", "recipe.num_steps=100000", "save_every=null"]
    run(arguments, once=(tmp_path / "run" / "manifest.json").is_file, act=_kill)
    found = manifest.read(tmp_path / "run")
    assert found["run"]["status"] == "running" and found["history"][-1]["ended"] is None
    assert "tests.user.toy" in found["code"]["modules"] or "toy" in " ".join(found["code"]["modules"])


def _kill(pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_an_own_loop_has_one_too(tmp_path):
    runtime = trainkit.Runtime(device="cpu", run_dir=tmp_path / "run", tracker=trainkit.Tracker())
    runtime.log(runtime.log_every, loss=1.0)
    runtime.close()
    found = manifest.read(tmp_path / "run")
    assert found["configuration"] == {} and found["training"]["strategy"] == "ddp"


def test_one_that_cannot_be_written_does_not_end_training(tmp_path, capsys):
    (tmp_path / "manifest.json").mkdir()
    runtime = trainkit.Runtime(device="cpu", run_dir=tmp_path)
    trainkit.Trainer(Counting(runtime, range(9), 2)).fit()
    assert "manifest.json could not be written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as a manifest"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "is no manifest of format 1"),
        ('{"format": 2}', "read it with a newer trainkit"),
        ('{"format": 1, "run": []}', "is no manifest: run: Input should be a valid dictionary"),
    ],
)
def test_what_is_no_manifest(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=message):
        manifest.read(tmp_path)


def test_a_directory_without_one(tmp_path):
    with pytest.raises(DataError, match=r"has no manifest\.json: give the directory of a run"):
        manifest.read(tmp_path)


def test_the_difference_to_the_commit_is_kept(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, "-C", str(tmp_path / "code"), *arguments], check=True, capture_output=True)

    (tmp_path / "code").mkdir()
    git("init", "-q")
    (tmp_path / "code" / "a.py").write_text("x = 1\n")
    git("add", "."), git("commit", "-qm", "a")
    assert code._state(tmp_path / "code")["is_clean"]
    (tmp_path / "code" / "a.py").write_text("x = 2\n")
    (tmp_path / "code" / "b.py").write_text("y = 2\n")
    state = code._state(tmp_path / "code")
    assert not state["is_clean"] and state["num_untracked"] == 1
    difference = code.difference_of(tmp_path / "code")
    assert state["diff_sha256"] == hashlib.sha256(difference).hexdigest() and b"+x = 2" in difference
    git("stash", "-q")
    (tmp_path / "code.diff").write_bytes(difference)
    git("apply", str(tmp_path / "code.diff"))
    assert (tmp_path / "code" / "a.py").read_text() == "x = 2\n"
