"""Clock: where in the data a run is."""

from collections.abc import Callable

from trainkit.data.batch import Batch


class Clock:
    """The batch that a run is at. The runtime turns it; engines read weights, positions and learning rates off it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.batch: Batch | None = None
        self.position = 0
        """Samples in the steps done so far: where a resume goes on."""
        self.stretch = 1.0
        """What schedules take the positions times: above 1 where the run will end before it has seen all samples."""
        self.meet: Callable[[], None] = lambda: None
        """Called when the next call waits for other ranks."""

    def arrive(self, batch: Batch) -> None:
        """`batch` is the one that the next calls are about; until a step is made with it, it does not count as done."""
        self.batch, self.position = batch, batch.position

    def scheduled(self, position: int) -> int:
        """What `position` is to schedules of learning rates."""
        return position if self.stretch == 1.0 else round(position * self.stretch)

    def stepped(self) -> None:
        if self.batch is not None:
            self.position = self.batch.position + self.batch.size
