"""A save goes on beside training, is tried again when it fails, and never costs the checkpoint before it."""

import errno
import os
import subprocess
import threading

import pytest
import torch

import trainkit
from trainkit import checkpoint
from trainkit.checkpoint import saver, sharded
from trainkit.errors import CheckpointError
from trainkit.testing import run_ranks


class _Lines(trainkit.Tracker):
    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


def _make(runtime, size=8):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, size), torch.nn.BatchNorm1d(size), torch.nn.Linear(size, 2))
    return runtime.setup(network, torch.optim.AdamW(network.parameters()), ema_decay=0.5, name="network")


def _steps(runtime, engine, start, num_steps):
    data = torch.randn(400, 6, generator=torch.Generator().manual_seed(1))
    for batch in runtime.batches(data, batch_size=8, start=start, num_steps=num_steps):
        engine.backward(engine(batch.data).square().mean())
        engine.step()


def _go_on_while_a_save_is_held(strategy, path):
    runtime = trainkit.Runtime(strategy=strategy, device="cpu", tracker=trainkit.Tracker())
    engine = _make(runtime)
    _steps(runtime, engine, 0, 3)
    go_on, write = threading.Event(), sharded.write_safetensors

    def held(*args, **kwargs):
        assert go_on.wait(60)
        return write(*args, **kwargs)

    expected = {name: t.clone() for part in ("module", "optimizer", "average") for name, t in _flat(engine, part)}
    sharded.write_safetensors = held
    try:
        runtime.save(path, wait=False, network=engine, step=3)
        _steps(runtime, engine, 24, 4)
        assert not path.exists()
        changed = {name: t.clone() for part in ("module", "optimizer", "average") for name, t in _flat(engine, part)}
        go_on.set()
        runtime.finish_saving()
    finally:
        sharded.write_safetensors = write
    again = path.with_name("again")
    runtime.save(again, network=engine, step=7)  # through the same buffers
    return expected, changed, runtime.ranks.rank


def _flat(engine, part):
    return [(f"network.{part}/{name}", tensor) for name, tensor in engine.state_dict()[part].items()]


@pytest.mark.parametrize(
    ("strategy", "ranks"), [("ddp", 1), ("ddp", 2), ("fsdp", 2), ("fsdp", 4), ("hsdp", 4), ("zero2", 2), ("zero3", 2)]
)
def test_what_is_saved_is_what_was_there_when_it_was_called(tmp_path, strategy, ranks):
    path = tmp_path / "checkpoint"
    results = run_ranks(_go_on_while_a_save_is_held, ranks, strategy, path)
    expected, changed, _ = results[0]
    found, later = checkpoint.read_whole(path), checkpoint.read_whole(path.with_name("again"))
    assert found.keys() == later.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert [name for name in expected if not torch.equal(later[name], changed[name])] == []
    assert any(not torch.equal(expected[name], changed[name]) for name in expected)
    files = checkpoint.read_manifest(path)["files"]
    assert len(files) == ranks
    if strategy != "ddp":  # each its share: nobody writes twice what another has written
        total = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
        assert sum(entry["num_bytes"] for entry in files.values()) < total + ranks * 4096


def _fail(path, num_failures, pauses):
    tracker = _Lines()
    runtime = trainkit.Runtime(device="cpu", tracker=tracker)
    engine = _make(runtime)
    runtime.save(path, network=engine, step=1)
    left, write = num_failures, sharded.write_safetensors

    def full(*args, **kwargs):
        nonlocal left
        left -= 1
        if left >= 0 and runtime.ranks.rank == runtime.ranks.world_size - 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
        return write(*args, **kwargs)

    old, saver.PAUSES_S = saver.PAUSES_S, pauses
    sharded.write_safetensors = full
    error = None
    _steps(runtime, engine, 0, 2)
    try:
        runtime.save(path, network=engine, step=2)
    except CheckpointError as caught:
        error = str(caught)
    finally:
        sharded.write_safetensors, saver.PAUSES_S = write, old
    left_over = sorted(p.name for p in path.parent.iterdir()) if runtime.ranks.is_main else None
    return error, tracker.lines, left_over, runtime.load(path, network=engine).position, runtime.ranks.rank


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_save_that_fails_is_tried_again(tmp_path, ranks):
    for error, lines, left_over, position, rank in run_ranks(_fail, ranks, tmp_path / "last", 2, (0.0, 0.0)):
        assert error is None and position == 16
        if rank == 0:
            assert len([line for line in lines if "No space left" in line and "trying again" in line]) == 2
            assert left_over == ["last"]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_save_that_fails_says_why_and_leaves_the_last(tmp_path, ranks):
    for error, _, left_over, position, rank in run_ranks(_fail, ranks, tmp_path / "last", 3, (0.0, 0.0)):
        assert "could not write the checkpoint" in error and f"rank {ranks - 1}:" in error and "No space left" in error
        assert position == 0
        assert left_over == (["last"] if rank == 0 else None)


class _Recipe(trainkit.Recipe):
    num_samples = 80

    def __init__(self, runtime):
        self.runtime = runtime
        self.engine = _make(runtime, size=64)

    def engines(self):
        return {"network": self.engine}

    def batches(self, start=0):
        return self.runtime.batches(torch.randn(80, 6), batch_size=8, start=start)

    def train_step(self, batch):
        self.engine.backward(self.engine(batch.data).square().mean())
        return self.engine.step().metrics()

    def evaluate(self):
        return {}


def _train_where_there_is_little_space(run_dir, has_space_again):
    tracker = _Lines()
    saver.PAUSES_S = (0.1,)
    runtime = trainkit.Runtime(device="cpu", tracker=tracker, run_dir=run_dir)

    class Filling(_Recipe):
        def train_step(self, batch):
            if trainer.step == 3 and runtime.ranks.is_main:
                runtime.finish_saving()
                free = os.statvfs(run_dir).f_bavail * os.statvfs(run_dir).f_frsize
                (run_dir / "filler").write_bytes(bytes(free - 8192))
            if trainer.step == 7 and has_space_again and runtime.ranks.is_main:
                (run_dir / "filler").unlink()
            return super().train_step(batch)

    trainer = trainkit.Trainer(Filling(runtime), save_every=2, keep_last=2)
    error = None
    try:
        trainer.fit()
    except CheckpointError as caught:
        error = str(caught)
    return error, tracker.lines


@pytest.fixture
def small_disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"the kernel lends no small disk: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("has_space_again", [False, True])
def test_a_full_disk(small_disk, has_space_again):
    run_dir = small_disk / "run"
    run_dir.mkdir()
    ((error, lines),) = run_ranks(_train_where_there_is_little_space, 1, run_dir, has_space_again)
    assert any("No space left on device" in line and "training continues" in line for line in lines)
    steps = [path.name for path in checkpoint.step_directories(run_dir / "checkpoints")]
    if has_space_again:
        assert error is None and steps[-1] == "step_00000010"
    else:
        assert "No space left on device" in error and steps == ["step_00000002"]
        assert [path.name for path in (run_dir / "checkpoints").iterdir()] == steps
    checkpoint.verify(
        run_dir / "checkpoints" / steps[-1], checkpoint.read_manifest(run_dir / "checkpoints" / steps[-1])["files"]
    )
