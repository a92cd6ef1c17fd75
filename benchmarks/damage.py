"""Checkpoints with a damaged byte: the error on loading, and the checkpoint from which a run resumes instead."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import trainkit
from benchmarks.handover import NUM_BEFORE, Bert, Place
from trainkit.errors import CheckpointError
from trainkit.strategy import by_name

NUM_FLIPS = 50
WROTE: Place = ("fsdp", 2)


class _Lines(trainkit.Tracker):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def write_two(strategy: str, run_dir: Path) -> None:
    """Two checkpoints of a run, the newer one with a step more. Collective: every rank calls."""
    runtime = trainkit.Runtime(strategy=by_name(strategy), device="cpu", tracker=trainkit.Tracker())
    model = Bert(runtime, is_resumed=False)
    for step in (NUM_BEFORE, NUM_BEFORE + 1):
        model.losses(runtime.position, step - runtime.position // Bert.batch_size)
        runtime.save(run_dir / "checkpoints" / f"step_{step:08d}", model=model.engine, step=step)
    runtime.close()


def faults(content: bytes, seed: int) -> Iterator[tuple[str, bytes | None]]:
    """Kinds of damage and what a file with `content` is then; None: it is gone."""
    for length in (0, len(content) // 2, len(content) - 1):
        yield "truncated", content[:length]
    for bit in random.Random(seed).sample(range(8 * len(content)), NUM_FLIPS):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield "one bit flipped", bytes(flipped)
    yield "deleted", None


def measure(run_dir: Path, report: Callable[[int], None] = lambda n: None) -> dict[str, Any]:
    """Damages every file of the run's newest checkpoint in every way, one at a time.

    `named`: loading it ended in an error with the name of the file.  `fell back`: loading the run took the checkpoint
    before, and said which file was at fault.  `silent`: something was loaded, or changed, all the same.
    """
    older, newer = sorted((run_dir / "checkpoints").glob("step_*"))
    kinds, num_named, num_back, num_silent = Counter[str](), 0, 0, 0
    files = sorted(newer.iterdir())
    for seed, file in enumerate(files):
        content = file.read_bytes()
        for kind, damaged in faults(content, seed):
            with _replaced(file, damaged):
                step, said, is_touched = _load(newer)
                num_named += step is None and file.name in said
                num_silent += step is not None or is_touched
                step, said, _ = _load(run_dir)
                num_back += step == int(older.name[5:]) and file.name in said
                num_silent += step == int(newer.name[5:])
            kinds[kind] += 1
            report(kinds.total())
    step, _, _ = _load(run_dir)
    if step != int(newer.name[5:]):
        raise RuntimeError("the checkpoint does not load when it is whole: nothing was shown")
    return {
        "files": [file.name for file in files],
        "faults": kinds.total(),
        "of": dict(kinds),
        "named": num_named,
        "fell back": num_back,
        "silent": num_silent,
    }


@contextmanager
def _replaced(file: Path, content: bytes | None) -> Iterator[None]:
    whole = file.read_bytes()
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(whole)


def _load(path: Path) -> tuple[int | None, str, bool]:
    """The step that was loaded, what was said, and whether a load that failed has changed anything."""
    tracker = _Lines()
    runtime = trainkit.Runtime(strategy="single", device="cpu", tracker=tracker)
    model = Bert(runtime, is_resumed=True)
    before = {name: tensor.clone() for name, tensor in model.engine.module.state_dict().items()}
    step, is_touched = None, False
    try:
        step = runtime.load(path, model=model.engine).values["step"]
    except CheckpointError as error:
        tracker.lines.append(str(error))
        after = model.engine.module.state_dict()
        is_touched = any(not torch.equal(after[name], tensor) for name, tensor in before.items())
        is_touched = is_touched or bool(model.engine.optimizer.state)
    runtime.close()
    return step, "\n".join(tracker.lines), is_touched
