"""Lately: which of many numbers came in the last seconds, in little memory."""

import time

import numpy as np
from numpy.typing import NDArray

_SIZE = 1 << 16
_FOR_S = 10.0


class Lately:
    """Remembers numbers for ten seconds, each in the one place that it may have: of two with the same, the later one.

    Example:
        >>> lately = Lately()
        >>> lately.add(np.array([1, 5])), lately.add(np.array([5, 6]))
        (array([ True,  True]), array([False,  True]))
    """

    def __init__(self) -> None:
        self._places, self._since_s = np.full(_SIZE, -1, np.int64), time.monotonic()

    def add(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Remembers numbers, 0 or more, and returns for each whether it is new."""
        if time.monotonic() - self._since_s > _FOR_S:
            self._places.fill(-1)
            self._since_s = time.monotonic()
        places = numbers % _SIZE
        is_new: NDArray[np.bool_] = self._places[places] != numbers
        self._places[places] = numbers
        return is_new
