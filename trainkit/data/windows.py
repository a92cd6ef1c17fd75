"""Windows: a map-style data set of windows over tokens in a file, of which several are read at once."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainkit.data.order import Order


class Windows(ABC):
    """A subclass reads several windows at once; an item is one of them.

    Args:
        num_windows: in the file.
        most: the maximum number of them in the data set, an even choice by a hash of their numbers; None: all.
    """

    is_thread_safe = True
    """Threads may read at the same time."""

    def __init__(self, num_windows: int, most: int | None) -> None:
        self._chosen: NDArray[np.int64] | None = None
        if most is not None and most < num_windows:
            # Evenly spread over the file, and the same ones in every run.
            self._chosen = np.sort(Order(num_windows, seed=0).indices(np.arange(most)))
            num_windows = most
        self._num_windows = num_windows

    def __len__(self) -> int:
        return self._num_windows

    def numbers(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Returns the places in the file of the windows at `indices`."""
        rows = np.asarray(indices, np.int64)
        return rows if self._chosen is None else self._chosen[rows]

    @abstractmethod
    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Returns tensors [n, T] by name."""

    @overload
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Tensor]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        return {name: values[0] for name, values in self.__getitems__([index % len(self)]).items()}
