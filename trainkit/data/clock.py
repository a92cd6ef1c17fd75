"""Clock: the position of a run in its data."""

from collections.abc import Callable

from trainkit.data.batch import Batch


class Clock:
    """The current batch of a run, from which engines read weights, positions and learning rates.

    Args:
        seed: the seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.batch: Batch | None = None
        self.position = 0
        """Samples in the steps done so far, where a resume continues."""
        self.stretch = 1.0
        """The factor on positions in schedules: above 1 where the run will end before it has seen all samples."""
        self.meet: Callable[[], None] = lambda: None
        """Called before a call that waits for other ranks."""

    def arrive(self, batch: Batch) -> None:
        """Makes `batch` the current one; it counts as done only after a step."""
        self.batch, self.position = batch, batch.position

    def scheduled(self, position: int) -> int:
        """Returns the position that schedules of learning rates see in place of `position`."""
        return position if self.stretch == 1.0 else round(position * self.stretch)

    def stepped(self) -> None:
        """Counts the current batch as done."""
        if self.batch is not None:
            self.position = self.batch.position + self.batch.size
