"""Checkpoints: those of a run directory, which of them stay, and which is the best."""

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from trainkit import checkpoint
from trainkit.comm.agent import is_restart
from trainkit.errors import CheckpointError, ConfigError
from trainkit.runtime import Runtime
from trainkit.tracking.console import number


class Checkpoints:
    """Those of one run. The newest ones stay, the best one, and some on the way.

    directory: where they are; None: the run keeps none.  metric: the recipe's `best_metric`.
    last, best, every: `keep_last`, `keep_best` and `keep_every` of the Trainer.
    """

    def __init__(self, directory: Path | None, *, metric: str | None, last: int, best: bool, every: int | None) -> None:
        self.directory = directory
        self.last, self.keeps_best, self.every = last, best, every
        self._sign = -1.0 if (metric or "").startswith("-") else 1.0
        self.metric = (metric or "").removeprefix("-")
        """The name of the metric; empty where the recipe has none."""

    def path(self, step: int) -> Path:
        assert self.directory is not None
        return self.directory / f"step_{step:08d}"

    def tidy(self, step: int) -> list[Path]:
        """Clears away what earlier processes of the run have left; the new names of checkpoints after `step`."""
        assert self.directory is not None
        checkpoint.tidy(self.directory)
        return checkpoint.set_aside(self.directory, after=step)

    def prune(self, held_out: str | None) -> None:
        assert self.directory is not None
        best = self.best(held_out) if self.keeps_best else None
        checkpoint.prune(self.directory, keep_last=self.last, keep_every=self.every, best=best)

    def best(self, held_out: str | None) -> Path | None:
        values = self.values(held_out)
        return min(values, key=values.__getitem__) if values else None

    def values(self, held_out: str | None) -> dict[Path, float]:
        """How good each checkpoint was on the held-out data of this fingerprint: lower is better."""
        values: dict[Path, float] = {}
        if self.directory is None:
            return values
        for path in checkpoint.step_directories(self.directory):
            with suppress(CheckpointError):  # one that was damaged meanwhile is not the best of anything
                saved = checkpoint.read_manifest(path)["values"]
                value = self.value_of(saved["metrics"])
                if value is not None and saved.get("data", {}).get("held_out", held_out) == held_out:
                    values[path] = value
        return values

    def value_of(self, metrics: Mapping[str, float]) -> float | None:
        """The recipe's metric as a number of which lower is better; None where it is missing or not finite."""
        value = metrics.get(self.metric, math.nan)
        return self._sign * value if math.isfinite(value) else None

    def describe(self, held_out: str | None) -> str | None:
        """Says which checkpoint to use; None where there is none."""
        paths = checkpoint.step_directories(self.directory) if self.directory is not None else []
        values = self.values(held_out) if self.keeps_best else {}
        if not values:
            return f"newest checkpoint: {paths[-1]}" if paths else None
        best = min(values, key=values.__getitem__)
        return (
            f"best checkpoint: {best}, {self.metric} {number(self._sign * values[best])} at step {int(best.name[5:])}"
        )


def where_to_resume(runtime: Runtime, resume: str) -> Path | None:
    """The run or checkpoint that `resume` means; None: begin anew. Raises ConfigError. Collective: every rank calls."""
    own = runtime.run_dir / "checkpoints" if runtime.run_dir is not None else None
    # Rank 0 looks, so that all see the same.
    has_own, again = runtime.broadcast((own is not None and bool(checkpoint.step_directories(own)), is_restart()))
    if has_own and again:
        return own  # what this job itself has made comes before what it was told to begin with
    if resume == "never":
        if has_own:
            raise ConfigError(
                f"resume=never, and {own} holds checkpoints: give another run_dir, or resume=auto to go on"
            )
        return None
    if resume == "auto":
        return own if has_own else None
    return Path(resume).expanduser()
