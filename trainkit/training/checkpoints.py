"""Checkpoints: those of a run directory, which of them are kept, and which is the best."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from trainkit import checkpoint
from trainkit.errors import CheckpointError
from trainkit.tracking.console import number


class Checkpoints:
    """The checkpoints of one run: the newest ones are kept, the best one, and those of every so many steps.

    Args:
        directory: where they are; None: the run saves none.
        metric: the recipe's `best_metric`.
        last: `keep_last` of the Trainer.
        best: `keep_best` of the Trainer.
        every: `keep_every` of the Trainer.
        held_out: returns the fingerprint of the data that the run is evaluated on.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        metric: str | None,
        last: int,
        best: bool,
        every: int | None,
        held_out: Callable[[], str | None],
    ) -> None:
        self.directory = directory
        self._held_out = held_out
        self.last, self.keeps_best, self.every = last, best, every
        self._sign = -1.0 if (metric or "").startswith("-") else 1.0
        self.metric = (metric or "").removeprefix("-")
        """The name of the metric; empty where the recipe has none."""

    def path(self, step: int) -> Path:
        """The directory of the checkpoint after `step`."""
        assert self.directory is not None
        return self.directory / f"step_{step:08d}"

    def holds(self, path: Path) -> bool:
        """Whether the checkpoint at `path` is one of the run's own."""
        return self.directory is not None and path.parent.resolve() == self.directory.resolve()

    def tidy(self, step: int) -> list[Path]:
        """Removes what earlier processes have left unfinished, and sets checkpoints after `step` aside.

        Returns:
            The new paths of those that were set aside: the run will write others of their names.
        """
        if self.directory is None:
            return []
        checkpoint.tidy(self.directory)
        return checkpoint.set_aside(self.directory, after=step)

    def prune(self) -> None:
        """Deletes the checkpoints that are not to be kept."""
        assert self.directory is not None
        best = self.best() if self.keeps_best else None
        checkpoint.prune(self.directory, keep_last=self.last, keep_every=self.every, best=best)

    def best(self) -> Path | None:
        """The checkpoint with the best metric; None where none has it."""
        values = self.values()
        return min(values, key=values.__getitem__) if values else None

    def values(self) -> dict[Path, float]:
        """The metric of each checkpoint that was evaluated on the current held-out data: lower is better."""
        values: dict[Path, float] = {}
        if self.directory is None:
            return values
        held_out = self._held_out()
        for path in checkpoint.step_directories(self.directory):
            with suppress(CheckpointError):  # a damaged one cannot be the best
                saved = checkpoint.read_allowed(path)["values"]
                value = self.value_of(saved["metrics"])
                if value is not None and saved.get("data", {}).get("held_out", held_out) == held_out:
                    values[path] = value
        return values

    def value_of(self, metrics: Mapping[str, float]) -> float | None:
        """The recipe's metric, negated where higher is better; None where it is missing or not finite."""
        value = metrics.get(self.metric, math.nan)
        return self._sign * value if math.isfinite(value) else None

    def describe(self) -> str | None:
        """A line that names the checkpoint to use; None where there is none."""
        paths = checkpoint.step_directories(self.directory) if self.directory is not None else []
        values = self.values() if self.keeps_best else {}
        if not values:
            return f"newest checkpoint: {paths[-1]}" if paths else None
        best = min(values, key=values.__getitem__)
        return (
            f"best checkpoint: {best}, {self.metric} {number(self._sign * values[best])} at step {int(best.name[5:])}"
        )
