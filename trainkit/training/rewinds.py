"""Rewinds: how often a run went back to a checkpoint, and what it has left out since."""

from collections.abc import Iterable
from pathlib import Path

from trainkit.data.batch import Batch
from trainkit.errors import NonFiniteError
from trainkit.health.nonfinite import ADVICE, Fault

MOST_REWINDS = 3  # to the same checkpoint


class Rewinds:
    """Of `nonfinite=rewind`. left_out: [position, size] of the batches that led to a fault; stored in checkpoints."""

    def __init__(self) -> None:
        self.left_out: list[list[int]] = []
        self._num = 0

    def leaves_out(self, batch: Batch) -> bool:
        end = batch.position + batch.size
        return any(start < end and batch.position < start + size for start, size in self.left_out)

    def load(self, left_out: Iterable[list[int]]) -> None:
        self.left_out += [kept for kept in left_out if kept not in self.left_out]

    def saved(self) -> None:
        """There is a newer checkpoint."""
        self._num = 0

    def add(self, fault: Fault, path: Path | None, told: str) -> Path:
        """Leaves out the batch of `fault`, after going back to `path`. Raises NonFiniteError where that cannot be."""
        if path is None or fault.position is None:
            raise NonFiniteError(f"{told}. nonfinite=rewind has no checkpoint to go back to: set save_every lower")
        if self._num == MOST_REWINDS:
            raise NonFiniteError(
                f"{told}. nonfinite=rewind went back {MOST_REWINDS} times to {path} already. Stopped: {ADVICE}"
            )
        self._num += 1
        self.left_out.append([fault.position, fault.size])
        return path
