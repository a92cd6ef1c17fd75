"""Rewinds: how often a run returned to a checkpoint, and the batches that it leaves out."""

from collections.abc import Iterable
from pathlib import Path

from trainkit.data.batch import Batch
from trainkit.errors import NonFiniteError
from trainkit.health.nonfinite import ADVICE, Fault

MOST_REWINDS = 3  # to the same checkpoint


class Rewinds:
    """The state of `nonfinite=rewind`: `left_out` holds [position, size] of the batches that led to a fault."""

    def __init__(self) -> None:
        self.left_out: list[list[int]] = []
        self._num = 0

    def leaves_out(self, batch: Batch) -> bool:
        """Whether `batch` overlaps one that is left out."""
        end = batch.position + batch.size
        return any(start < end and batch.position < start + size for start, size in self.left_out)

    def load(self, left_out: Iterable[list[int]]) -> None:
        """Adds the batches that a checkpoint leaves out."""
        self.left_out += [kept for kept in left_out if kept not in self.left_out]

    def saved(self) -> None:
        """Starts the count over, for a newer checkpoint."""
        self._num = 0

    def add(self, fault: Fault, path: Path | None, report: str) -> Path:
        """Leaves out the batch of a fault.

        Args:
            fault: whose batch is left out.
            path: of the checkpoint that the run returns to; None: there is none.
            report: of the fault, for messages.

        Returns:
            `path`.

        Raises:
            NonFiniteError: without a checkpoint, or after too many rewinds to the same one.
        """
        if path is None or fault.position is None:
            raise NonFiniteError(f"{report}. nonfinite=rewind has no checkpoint to return to: set save_every lower")
        if self._num == MOST_REWINDS:
            raise NonFiniteError(
                f"{report}. nonfinite=rewind went back {MOST_REWINDS} times to {path} already. Stopped: {ADVICE}"
            )
        self._num += 1
        self.left_out.append([fault.position, fault.size])
        return path
