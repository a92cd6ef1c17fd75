"""A run on several ranks that is killed at random moments and restarted until it ends.

Its processes are forked from one with all imports done, so that a start takes a fraction of a second, and run
launch/train.py.
"""

import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import Job

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu")
NUM_STEPS, SAVE_EVERY = 150, 5
LIMIT_S, GRACE_S = 120.0, 1.0  # of an attempt; and of the other ranks once one was killed
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Attempt:
    """One start of the run.

    killed: `all ranks`, `one rank`, or None where it came to its end.  moment: in which the kill found it.
    resumed: the step after which it went on; None: it began, or was killed before it said so.
    """

    killed: str | None
    moment: str
    resumed: int | None
    passed_over: bool


class Victim:
    """A BERT of two layers with dropout, on a text whose epochs are no whole number of batches, saving all the time."""

    def __init__(self, directory: Path, text: Path, world_size: int, num_steps: int) -> None:
        self.directory, self.world_size = directory, world_size
        self.arguments = [
            "recipe=bert",
            f"data.path={text}",
            "data.vocab_size=100",
            "data.sequence_length=32",
            "recipe.model.hidden_size=32",
            "recipe.model.feed_forward_size=64",
            "recipe.model.num_layers=2",
            "recipe.batch_size=24",
            f"recipe.num_steps={num_steps}",
            "schedule.warmup=10",
            "evaluate_every=null",
            f"save_every={SAVE_EVERY}",
            "log_every=1",
            "tracking=none",
            "deterministic=true",
            f"run_dir={directory}",
        ]

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((self.directory / "checkpoints").glob("step_*"))

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint that is there."""
        return int(self.checkpoints[-1].name[5:]) if self.checkpoints else None

    def lines(self) -> list[dict[str, Any]]:
        """What metrics.jsonl says of training, without the times."""
        path = self.directory / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        kept = ("step", "loss", "grad_norm", "lr", "position")
        return [{key: line[key] for key in kept} for line in lines if line["kind"] == "training"]

    def sums(self) -> dict[str, Any]:
        """The files of the last checkpoint, with their sums."""
        return dict(json.loads((self.checkpoints[-1] / "manifest.json").read_text())["files"])

    def attempt(self, kill_after_s: float | None, one_rank: int | None) -> Attempt:
        """Starts the run; kills all its ranks, or `one_rank` first, after a time."""
        num_lines = _num_lines(self.directory / "metrics.jsonl")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        job = Job(ROOT / "launch" / "train.py", self.arguments, self.world_size, ROOT, environment)
        try:
            has_ended = job.wait(LIMIT_S if kill_after_s is None else kill_after_s)
            if not has_ended and kill_after_s is None:
                raise TimeoutError(f"the run was not done within {LIMIT_S:.0f} s:\n{job.output}")
            if not has_ended and one_rank is not None:
                job.processes[one_rank].kill()
                job.wait(GRACE_S)
        finally:
            job.kill()
        said = "".join(job.output)
        if has_ended and job.poll():
            raise RuntimeError(f"the run failed:\n{said}")
        found = re.search(r"resumed after step (\d+)", said)
        moment = "before the first step"
        if any((self.directory / "checkpoints").glob(".step_*")):
            moment = "in a save"
        elif _num_lines(self.directory / "metrics.jsonl") > num_lines:
            moment = "between saves"
        return Attempt(
            None if has_ended else "all ranks" if one_rank is None else "one rank",
            moment,
            int(found.group(1)) if found else None,
            "passed over" in said,
        )


def measure(
    num_kills: int,
    world_size: int,
    directory: Path,
    *,
    seed: int = 0,
    num_steps: int = NUM_STEPS,
    report: Callable[[int], None] = lambda n: None,
) -> dict[str, Any]:
    """Kills runs until there were `num_kills` kills and the last run has ended; how they compare with one left alone.

    `lost`: starts that did not go on from the newest checkpoint that was in place.  `differing`: runs whose last
    checkpoint, or whose record of losses, is not the same to the last bit.
    """
    text = directory / "text.txt"
    draw = random.Random(seed)
    text.write_text("\n\n".join(" ".join(draw.choices(WORDS, k=draw.randrange(5, 40))) for _ in range(300)))
    whole = Victim(directory / "whole", text, world_size, num_steps)
    whole.attempt(None, None)  # the first one also fills the caches
    began = time.monotonic()
    again = Victim(directory / "again", text, world_size, num_steps)
    again.attempt(None, None)
    longest_s = time.monotonic() - began
    kills, moments = Counter[str](), Counter[str]()
    num_runs = lost = differing = num_restarts = 0
    if again.sums() != whole.sums() or again.lines() != whole.lines():
        raise RuntimeError("two runs that were left alone differ: there is nothing to compare with")
    while kills.total() < num_kills:
        num_runs += 1
        victim = Victim(directory / f"run_{num_runs:03d}", text, world_size, num_steps)
        newest: int | None = None
        while True:
            is_last = kills.total() >= num_kills
            one_rank = draw.randrange(world_size) if draw.random() < 0.5 else None
            attempt = victim.attempt(None if is_last else draw.uniform(0.0, longest_s), one_rank)
            num_restarts += newest is not None
            lost += attempt.passed_over or (attempt.resumed is not None and attempt.resumed != (newest or 0))
            if attempt.killed is None:
                lost += newest is not None and attempt.resumed is None and newest < num_steps
                break
            kills[attempt.killed] += 1
            moments[attempt.moment] += 1
            newest = victim.newest
            report(kills.total())
        differing += victim.sums() != whole.sums() or victim.lines() != whole.lines()
    return {
        "ranks": world_size,
        "kills": kills.total(),
        "of": dict(kills),
        "found": dict(moments),
        "runs": num_runs,
        "restarts from a checkpoint": num_restarts,
        "lost": lost,
        "differing": differing,
    }


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
