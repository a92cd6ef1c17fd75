"""Killed and resumed against never killed, and everything else a resume must keep."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import trainkit
from tests.counting import Counting
from tests.jobs import TOY, newest_tensors, run, run_until
from trainkit import checkpoint
from trainkit.checkpoint import run_directory, store
from trainkit.errors import CheckpointError, ConfigError
from trainkit.testing import run_ranks
from trainkit.training.resume import where_to_resume


def _steps(run_dir: Path) -> list[int]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}") and '"training"' in line]


def assert_killed_equals_whole(
    tmp_path: Path, arguments: list[str], ranks: int | None, kill_from_step: int, timeout_s: float = 300.0
) -> None:
    """The job of `arguments`, killed at a random moment after a step and resumed, ends with the same bits."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = [*arguments, "deterministic=true", "tracking=none"]
    finished = run([*arguments, f"run_dir={whole}"], ranks, timeout_s=timeout_s)
    assert finished.returncode == 0, finished.stderr
    target = kill_from_step + random.randrange(4)
    was_killed = run_until(
        lambda: bool(_steps(killed)) and _steps(killed)[-1] >= target,
        [*arguments, f"run_dir={killed}"],
        ranks,
        timeout_s,
    )
    assert was_killed, "the job ended before it could be killed"
    resumed = run([*arguments, f"run_dir={killed}"], ranks, timeout_s=timeout_s)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after step" in resumed.stdout
    expected, found = newest_tensors(whole), newest_tensors(killed)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    steps = _steps(killed)
    assert steps == sorted(set(steps)) == _steps(whole), "a step was told twice, or not at all"


@pytest.mark.parametrize(("ranks", "num_steps"), [pytest.param(2, 300, marks=pytest.mark.nightly), (4, 160)])
def test_killed_and_resumed_gives_the_same_bits(tmp_path, ranks, num_steps):
    arguments = [
        *TOY,
        f"recipe.num_steps={num_steps}",
        "log_every=1",
        "save_every=25",
        "recipe.grad_accumulation_steps=2",
    ]
    assert_killed_equals_whole(tmp_path, arguments, ranks, kill_from_step=60)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "zero2"])
def test_killed_and_resumed_gives_the_same_bits_in_shards(tmp_path, strategy):
    arguments = [*TOY, f"strategy={strategy}", "recipe.num_steps=160", "log_every=1", "save_every=25"]
    assert_killed_equals_whole(tmp_path, arguments, 2, kill_from_step=60)


def test_another_number_of_ranks_goes_on_with_the_same_batches(tmp_path):
    arguments = [*TOY, "recipe.num_steps=24", "precision=fp64"]
    for name, ranks in (("whole", 1), ("split", 4)):
        assert run([*arguments, f"run_dir={tmp_path / name}"], ranks).returncode == 0
    middle = tmp_path / "split" / "checkpoints" / "step_00000016"
    resumed = run([*arguments, f"run_dir={tmp_path / 'on'}", f"resume={middle}"], 2)
    assert resumed.returncode == 0, resumed.stderr
    expected, found = newest_tensors(tmp_path / "whole"), newest_tensors(tmp_path / "on")
    worst = max(
        float((found[k] - expected[k]).abs().max() / expected[k].abs().max().clamp(min=1e-30)) for k in expected
    )
    assert worst < 1e-10


def _run_of(path: Path, save: bool):
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), precision="fp16")
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    engine = runtime.setup(network, torch.optim.Adam(network.parameters()), ema_decay=0.5)
    if save:
        for batch in runtime.batches(torch.ones(10, 3), batch_size=5, num_steps=3):
            engine.backward(engine(batch.data).float().mean() * 0.01)
            engine.step()
        runtime.save(path, network=engine, step=2, note="kept")
        return {k: v for k, v in engine.state_dict().items()}
    loaded = runtime.load(path, network=engine)
    assert (loaded.position, loaded.values) == (15, {"step": 2, "note": "kept"})
    first = next(runtime.batches(torch.ones(10, 3), batch_size=5, start=loaded.position))
    assert first.position == 15
    return engine.state_dict()


@pytest.mark.parametrize("world_size", [1, 2])
def test_ones_own_loop_saves_and_loads_everything(tmp_path, world_size):
    saved = run_ranks(_run_of, world_size, tmp_path / "last", True)[0]
    for loaded in run_ranks(_run_of, world_size, tmp_path / "last", False):
        assert loaded["scalars"] == saved["scalars"]
        for part in checkpoint.state.PARTS:
            assert loaded[part].keys() == saved[part].keys()
            assert all(torch.equal(loaded[part][name], saved[part][name]) for name in saved[part])


@pytest.fixture
def saved(tmp_path):
    _run_of(tmp_path / "last", True)
    return tmp_path / "last"


def test_saving_again_replaces_and_leaves_nothing_else(saved):
    _run_of(saved, True)
    assert [path.name for path in saved.parent.iterdir()] == ["last"]


def test_a_kill_between_the_two_renames_loses_nothing(saved):
    expected = checkpoint.read_whole(saved)
    saved.rename(saved.with_name("last.previous"))
    loaded = {f"network.module/{name}": tensor for name, tensor in _run_of(saved, False)["module"].items()}
    assert loaded.keys() == {name for name in expected if name.startswith("network.module/")}
    assert all(torch.equal(loaded[name], expected[name]) for name in loaded)


def test_a_configuration_with_numbers_for_keys_is_read_back(tmp_path):
    (tmp_path / "written").mkdir()
    config = {"stable_images": {4: 1000, 16: 2000, 8: 3000}}
    nothing: dict[str, Any] = {"position": 0, "engines": {}, "tensors": {}, "files": {}}
    store.complete(tmp_path / "written", tmp_path / "step", {**nothing, "values": {"config": config}})
    read = store.read_manifest(tmp_path / "step")["values"]["config"]
    assert read == {"stable_images": {"4": 1000, "16": 2000, "8": 3000}}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted", "no_manifest", "manifest_cut", "foreign"])
def test_damage_is_named(saved, damage):
    file, manifest = saved / "rank_00000.safetensors", saved / "manifest.json"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-3])
    elif damage == "flipped":
        content[-2] ^= 1
        file.write_bytes(content)
    elif damage == "deleted":
        file.unlink()
    elif damage == "no_manifest":
        manifest.unlink()
    elif damage == "manifest_cut":
        manifest.write_text(manifest.read_text()[:100])
    else:
        manifest.write_text('{"format": "theirs"}')
    named = "rank_00000.safetensors" if damage in ("truncated", "flipped", "deleted") else str(saved)
    with pytest.raises(CheckpointError, match=named):
        _run_of(saved, False)


def test_a_checkpoint_of_another_model_names_the_tensor(saved):
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker())
    wide = torch.nn.Linear(4, 2)
    engine = runtime.setup(wide, torch.optim.Adam(wide.parameters()), ema_decay=0.5)
    with pytest.raises(CheckpointError, match=r"'weight' has shape \[2, 4\], the checkpoint's has \[2, 3\]"):
        runtime.load(saved, network=engine)
    with pytest.raises(CheckpointError, match="holds the engines network; this run has other"):
        runtime.load(saved, other=engine)


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), run_dir=tmp_path / "run")
    recipe = Counting(runtime, [5, 1, 4, 3, 2], num_steps=10)
    trainkit.Trainer(recipe, evaluate_every=2, save_every=2, keep_last=2).fit()
    kept = [int(path.name[5:]) for path in checkpoint.step_directories(tmp_path / "run" / "checkpoints")]
    assert kept == [4, 8, 10]  # 4 was the best, 8 and 10 are the newest


def test_auto_passes_over_a_damaged_checkpoint_and_says_so(tmp_path, capsys):
    runtime = trainkit.Runtime(device="cpu", run_dir=tmp_path / "run")
    trainkit.Trainer(Counting(runtime, range(9), num_steps=10), evaluate_every=2, save_every=2, keep_last=5).fit()
    (checkpoint.step_directories(tmp_path / "run" / "checkpoints")[-1] / "rank_00000.safetensors").unlink()
    runtime = trainkit.Runtime(device="cpu", run_dir=tmp_path / "run")
    trainer = trainkit.Trainer(Counting(runtime, range(9), num_steps=10))
    trainer.fit()
    out = capsys.readouterr().out
    assert "passed over" in out and "rank_00000.safetensors is missing" in out
    assert "resumed after step 8" in out
    checkpoints = tmp_path / "run" / "checkpoints"
    assert f"the run continues from step 8: a later checkpoint was moved to {checkpoints / 'step_00000010.left'}" in out
    assert (checkpoints / "step_00000010" / "rank_00000.safetensors").exists(), "written anew"


def test_an_abandoned_branch_does_not_count_as_the_newest(tmp_path):
    """Going on from an older checkpoint of the same run: what it saves from there on is its newest."""
    checkpoints = tmp_path / "run" / "checkpoints"
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), run_dir=tmp_path / "run")
    trainkit.Trainer(Counting(runtime, range(9), num_steps=10), save_every=2, keep_last=9).fit()
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), run_dir=tmp_path / "run")
    recipe = Counting(runtime, range(9), num_steps=10)
    recipe.num_samples = 24
    trainkit.Trainer(recipe, resume=checkpoints / "step_00000004", save_every=2, keep_last=1).fit()
    assert [path.name for path in checkpoint.step_directories(checkpoints)] == ["step_00000006"]
    assert sorted(path.name for path in checkpoints.glob("*.left")) == [
        "step_00000006.left", "step_00000008.left", "step_00000010.left"
    ]  # fmt: skip


def test_never_refuses_a_run_that_has_checkpoints(tmp_path):
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), run_dir=tmp_path / "run")
    trainkit.Trainer(Counting(runtime, range(9), num_steps=10)).fit()
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match="resume=never"):
        trainkit.Trainer(Counting(runtime, range(9), num_steps=10), resume="never").fit()


@pytest.mark.parametrize("resume", ["never", "elsewhere"])
def test_a_restarted_job_goes_on_from_its_own_checkpoint(tmp_path, monkeypatch, capsys, resume):
    for name in ("elsewhere", "run"):
        runtime = trainkit.Runtime(device="cpu", run_dir=tmp_path / name)
        trainkit.Trainer(Counting(runtime, range(9), num_steps=10), save_every=4).fit()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    (checkpoint.step_directories(tmp_path / "run" / "checkpoints")[-1] / "manifest.json").unlink()
    runtime = trainkit.Runtime(device="cpu", run_dir=tmp_path / "run")
    told = resume if resume == "never" else str(tmp_path / resume)
    trainkit.Trainer(Counting(runtime, range(9), num_steps=10), resume=told).fit()
    assert "resumed after step 8" in capsys.readouterr().out  # in `elsewhere`, step 10 is the newest


def _train(run_dir, num_samples, **options):
    runtime = trainkit.Runtime(device="cpu", run_dir=run_dir)
    recipe = Counting(runtime, range(9), num_steps=10)
    recipe.num_samples = num_samples
    trainkit.Trainer(recipe, **options).fit()


def test_what_has_changed_since_the_checkpoint_is_said(tmp_path, capsys):
    run_dir = tmp_path / "run"
    _train(run_dir, 20, config={"seed": 0, "optimizer": {"lr": 0.1, "betas": {4: 1}}})
    assert "changed since" not in capsys.readouterr().out
    _train(run_dir, 40, config={"seed": 0, "optimizer": {"lr": 0.2, "betas": {4: 1}}})
    assert "changed since the checkpoint: optimizer.lr 0.1 -> 0.2" in capsys.readouterr().out
    assert "lr: 0.2" in (run_dir / "config.yaml").read_text()
    assert "lr: 0.1" in (run_dir / "config.until_step_00000005.yaml").read_text()
    _train(run_dir, 40, config={"seed": 0, "optimizer": {"lr": 0.3, "betas": {4: 1}}})  # complete: nothing is trained
    assert "lr: 0.2" in (run_dir / "config.yaml").read_text()
    assert not (run_dir / "config.until_step_00000010.yaml").exists()


def test_no_room_for_the_configuration_leaves_nothing_half_done(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    _train(tmp_path / "run", 20, config={"seed": 0})
    monkeypatch.setattr(checkpoint, "write_text", full)
    with pytest.raises(CheckpointError, match=r"config.yaml cannot be written: No space left on device; make room"):
        _train(tmp_path / "run", 40, config={"seed": 1})
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 0\n"


class _Implying(Counting):
    """Its engines have a size: a run's own checkpoint says 1, another's 2, and weights 3."""

    implied_keys = ("model.size",)

    @classmethod
    def implied_arguments(cls, given):
        return {"model.size": 3}


@pytest.mark.parametrize("is_restart", [False, True])
@pytest.mark.parametrize("has_own", [False, True])
@pytest.mark.parametrize("resume", ["auto", "never", "elsewhere"])
def test_what_is_implied_is_of_what_is_resumed(tmp_path, monkeypatch, resume, has_own, is_restart):
    for name, size in [("elsewhere", 2), *([("run", 1)] if has_own else [])]:
        _train(tmp_path / name, 4, config={"recipe": {"model": {"size": size}}})
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(int(is_restart)))
    told = str(tmp_path / resume) if resume == "elsewhere" else resume
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), run_dir=tmp_path / "run")
    config: dict[str, Any] = {"resume": told, "run_dir": str(tmp_path / "run"), "recipe": {}}
    if resume == "never" and has_own and not is_restart:
        for ask in (lambda: where_to_resume(runtime, told), lambda: _Implying.implied_by(config)):
            with pytest.raises(ConfigError, match=r"resume=never, and .*run/checkpoints holds checkpoints"):
                ask()
        return
    where = where_to_resume(runtime, told)
    sizes = {None: 3, tmp_path / "run" / "checkpoints": 1, tmp_path / "elsewhere": 2}
    assert _Implying.implied_by(config) == {"model.size": sizes[where]}
    expected = 1 if has_own and (is_restart or resume == "auto") else 2 if resume == "elsewhere" else 3
    assert sizes[where] == expected


def test_a_dated_run_is_known_to_a_restart(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "logs" / "attempt_0" / "0" / "error.json"))
    (tmp_path / "logs").mkdir()
    dated = str(tmp_path / "%Y-%m-%d")
    config: dict[str, Any] = {"resume": "auto", "run_dir": dated, "recipe": {}}
    assert _Implying.implied_by(config) == {"model.size": 3}
    _train(dated, 4, config={"recipe": {"model": {"size": 1}}})
    assert _Implying.implied_by(config) == {"model.size": 3}, "of another run of this process"
    monkeypatch.setattr("trainkit.distributed.agent._asked", Counter())  # as torchrun starts it again
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert _Implying.implied_by(config) == {"model.size": 1}
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), run_dir=dated)
    known = run_directory.known(str(runtime.run_dir))
    assert known is not None and where_to_resume(runtime, "auto") == known / "checkpoints"
