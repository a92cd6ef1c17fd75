"""LeftOutRows: rows of text that could not be read and were left out."""

from trainkit.errors import DataError

NUM_NAMED = 100


class LeftOutRows:
    """Counts what is left out, and keeps why the first of them could not be read; called with the error of each."""

    def __init__(self) -> None:
        self.num, self.first = 0, list[str]()

    def __call__(self, error: DataError) -> None:
        """Counts what the error is of."""
        self.num += 1
        if self.num <= NUM_NAMED:
            self.first.append(str(error))
