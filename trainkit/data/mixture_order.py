"""MixtureOrder: which source each position is of, and which of its samples."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from trainkit.data.block_order import BlockOrder
from trainkit.data.order import BLOCK, Order
from trainkit.random import key_of, words

LEAST_SHARE = 2.0**-20
"""The smallest share of a source: each has a sample in every stretch of positions, which has 2^21 at most."""

_STRETCH = 1 << 12  # positions, at least
_UNIT = 1 << 60  # of the shares, as integers: exact at any position
_NUM_CACHED = 8  # stretches: those of a few batches


class MixtureOrder:
    """An endless sequence of dataset indices into the samples of several sources, one source after the other.

    Each source is passed through in epochs of its own. Positions are cut into stretches; from the first position on,
    the sources have in each as many samples as their shares say, rounded so that what one stretch leaves comes in the
    next. In a stretch the samples of a source are evenly spaced, each moved at random within its space. So up to any
    position p the count of a source with the share s, among n sources, differs from s * p by less than 3 + s * n, and
    it is computed from the position alone.

    Args:
        shares: of the sources, each `LEAST_SHARE` or more, with the sum 1.
        orders: of the samples of each source.
        seed: the seed of the run.
    """

    shuffle, ahead = True, BLOCK

    def __init__(self, shares: Sequence[Fraction], orders: Sequence[Order | BlockOrder], seed: int) -> None:
        self.seed, self._orders = seed, orders
        lengths = np.array([order.num_samples for order in orders], np.int64)
        self.num_samples, self._offsets = int(lengths.sum()), np.cumsum(lengths) - lengths
        self._bounds = [int(sum(shares[:number], Fraction(0)) * _UNIT) for number in range(len(shares) + 1)]
        # A stretch holds a sample of each source: then no count of a stretch is below 0, however it is rounded.
        self.stretch = max(_STRETCH, 1 << (int(1 / min(shares))).bit_length())
        self._key = key_of(seed, "mixture")
        self._stretches: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Computes the dataset indices at positions.

        Args:
            positions: int64 [N], ascending.

        Returns:
            int64 [N].
        """
        sources, counts = self.sources(positions)
        found = np.empty_like(positions)
        for number, order in enumerate(self._orders):
            chosen = sources == number
            found[chosen] = order.indices(counts[chosen]) + self._offsets[number]
        return found

    def sources(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Computes the number of the source at each position, and the samples of that source before it.

        Args:
            positions: int64 [N].

        Returns:
            Two arrays, int64 [N].
        """
        stretches, places = np.divmod(positions, self.stretch)
        sources, counts = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(stretches).tolist():
            chosen = stretches == number
            sources_here, counts_here = self._stretch_of(number)
            sources[chosen], counts[chosen] = sources_here[places[chosen]], counts_here[places[chosen]]
        return sources, counts

    def counts(self, position: int) -> list[int]:
        """Returns the samples of each source before a position."""
        number, place = divmod(position, self.stretch)
        inside = np.bincount(self._stretch_of(number)[0][:place], minlength=len(self._orders))
        return [before + here for before, here in zip(self._before(number), inside.tolist(), strict=True)]

    def _before(self, number: int) -> list[int]:
        """The samples of each source before a stretch; integers of Python, as the products have more than 64 bits."""
        bounds = [bound * self.stretch * number // _UNIT for bound in self._bounds]
        return [high - low for low, high in pairwise(bounds)]

    def _stretch_of(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if number not in self._stretches:
            while len(self._stretches) >= _NUM_CACHED:
                del self._stretches[min(self._stretches)]
            self._stretches[number] = self._computed(number)
        return self._stretches[number]

    def _computed(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        before = np.array(self._before(number), np.int64)
        num = np.array(self._before(number + 1), np.int64) - before
        sources = np.repeat(np.arange(len(num)), num)
        ranks = np.arange(self.stretch) - (np.cumsum(num) - num)[sources]
        positions = torch.arange(number * self.stretch, (number + 1) * self.stretch)
        uniform = (words(self._key, positions, 1)[:, 0].numpy() + 0.5) * 2.0**-32
        by_time = np.argsort((ranks + uniform) / num[sources], kind="stable")
        return sources[by_time], (before[sources] + ranks)[by_time]
