"""Pictures: images of a data set, more of them than memory holds."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

_MOST_BYTES = 2**30


class Pictures(Protocol):
    """Images, uint8 [N, C, H, W]: a tensor, or what reads them when they are asked for."""

    @property
    def shape(self) -> torch.Size:
        """Of all images together."""

    def __getitem__(self, chosen: Tensor) -> Tensor:
        """Returns the images of these numbers, int64 [n]."""


class Read:
    """Images that are read when they are asked for; the first ones stay in memory.

    Args:
        num: images, at least one.
        read: returns image i, uint8 [C, H, W].
        most_bytes: of the images that stay.
    """

    def __init__(self, num: int, read: Callable[[int], Tensor], most_bytes: int = _MOST_BYTES) -> None:
        self._read, first = read, read(0)
        self.shape = torch.Size((num, *first.shape))
        self._kept = torch.empty((min(num, most_bytes // first.numel()), *first.shape), dtype=torch.uint8)
        self._is_kept = [False] * len(self._kept)

    def __getitem__(self, chosen: Tensor) -> Tensor:
        found = torch.empty((len(chosen), *self.shape[1:]), dtype=torch.uint8)
        for place, i in enumerate(chosen.tolist()):
            found[place] = self._image(i)
        return found

    def _image(self, i: int) -> Tensor:
        if i >= len(self._kept):
            return self._read(i)
        if not self._is_kept[i]:
            self._kept[i] = self._read(i)
            self._is_kept[i] = True
        return self._kept[i]


class Joined:
    """Images of one after those of another, both of one shape.

    Args:
        first: images.
        second: images.
    """

    def __init__(self, first: Pictures, second: Pictures) -> None:
        self._first, self._second = first, second
        self.shape = torch.Size((first.shape[0] + second.shape[0], *first.shape[1:]))

    def __getitem__(self, chosen: Tensor) -> Tensor:
        found = torch.empty((len(chosen), *self.shape[1:]), dtype=torch.uint8)
        num = self._first.shape[0]
        is_first = chosen < num
        found[is_first] = self._first[chosen[is_first]]
        found[~is_first] = self._second[chosen[~is_first] - num]
        return found
