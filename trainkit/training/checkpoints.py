"""Checkpoints: those of a run directory, which of them are kept, and which is the best."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainkit import checkpoint
from trainkit.checkpoint.copier import Copier
from trainkit.checkpoint.copies import Copies
from trainkit.checkpoint.fetching import FOLDER
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
        copier: copies them to a store, where the same ones are kept; None: the run has no copies.
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
        copier: Copier | None = None,
    ) -> None:
        self.directory, self._copier = directory, copier
        if copier is not None:
            copier.after = self._prune_copies
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

        Raises:
            StorageError: where the store of the copies does not answer.
        """
        if self.directory is None:
            return []
        checkpoint.tidy(self.directory)
        moved = checkpoint.set_aside(self.directory, after=step)
        if self._copier is not None:
            self._copier.copies.set_aside(after=step)
        return moved

    def copy_rest(self) -> None:
        """Copies the newest checkpoint, where an earlier process has not come to it.

        Raises:
            StorageError: where the store of the copies does not answer.
        """
        if self._copier is None or self.directory is None:
            return
        paths = checkpoint.step_directories(self.directory)
        if paths and paths[-1].name not in self._copier.copies.steps():
            self._copier.add(paths[-1], f"{FOLDER}/{paths[-1].name}")

    def prune(self) -> None:
        """Deletes the checkpoints that are not to be kept."""
        assert self.directory is not None
        values = {path.name: value for path, value in self.values().items()}
        in_use = self._copier.in_use if self._copier is not None else None
        names = [path.name for path in checkpoint.step_directories(self.directory)]
        checkpoint.prune(self.directory, self._superseded(names, values, in_use.name if in_use else None))

    def _prune_copies(self, copies: Copies) -> None:
        names, values = copies.steps(), {}
        for name in names:
            with suppress(CheckpointError):  # a damaged one cannot be the best
                value = self._current_value(copies.outside(name)["values"])
                if value is not None:
                    values[name] = value
        for name in self._superseded(names, values):
            copies.remove(name)

    def _superseded(self, names: Sequence[str], values: Mapping[str, float], in_use: str | None = None) -> list[str]:
        best = min(values, key=values.__getitem__) if self.keeps_best and values else None
        return checkpoint.superseded(names, keep_last=self.last, keep_every=self.every, kept=(best, in_use))

    def values(self) -> dict[Path, float]:
        """The metric of each checkpoint that was evaluated on the current held-out data: lower is better."""
        values: dict[Path, float] = {}
        if self.directory is None:
            return values
        for path in checkpoint.step_directories(self.directory):
            with suppress(CheckpointError):  # a damaged one cannot be the best
                value = self._current_value(checkpoint.read_allowed(path)["values"])
                if value is not None:
                    values[path] = value
        return values

    def _current_value(self, saved: Mapping[str, Any]) -> float | None:
        """The metric in the values of a checkpoint; None where it is of other held-out data, too."""
        held_out = self._held_out()
        is_current = saved.get("data", {}).get("held_out", held_out) == held_out
        return self.value_of(saved.get("metrics") or {}) if is_current else None

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
