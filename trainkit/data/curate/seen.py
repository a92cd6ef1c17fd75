"""SeenKeys: which hashes have come before, at 8 bytes each."""

import numpy as np
from numpy.typing import NDArray


class SeenKeys:
    """A growing set of hashes in sorted arrays, each at least twice as long as the next, as in a merge sort."""

    def __init__(self) -> None:
        self._sorted: list[NDArray[np.uint64]] = []

    def add(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Adds hashes.

        Args:
            keys: uint64 [n].

        Returns:
            bool [n], whether each is there for the first time.

        Example:
            >>> SeenKeys().add(np.array([3, 1, 3], np.uint64)).tolist()
            [True, True, False]
        """
        is_new = np.zeros(len(keys), np.bool_)
        is_new[np.unique(keys, return_index=True)[1]] = True
        for known in self._sorted:
            places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            is_new &= known[places] != keys
        added = np.sort(keys[is_new])
        if len(added):
            self._sorted.append(added)
        while len(self._sorted) > 1 and 2 * len(self._sorted[-1]) > len(self._sorted[-2]):
            self._sorted[-2:] = [np.sort(np.concatenate(self._sorted[-2:]))]
        return is_new
