"""Order: the order of samples as a pure function of (seed, position), position being the samples before it."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainkit.errors import ConfigError
from trainkit.random import key_of, words

_ROUNDS = 8
BLOCK = 1 << 14  # positions computed at a time: one batch at a time would take longer than a small step


class Order:
    """An endless sequence of dataset indices: every epoch contains each index once, in an order of its own.

    Nothing is stored for an epoch: an index is computed from its position by a keyed Feistel permutation with cycle
    walking (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), so a resume at any position costs
    nothing and a billion samples need no memory. It does not depend on NumPy's generators, whose streams may change.

    Args:
        num_samples: samples in the data set.
        seed: the seed of the run.
        shuffle: False: every epoch is 0 .. num_samples-1.

    Raises:
        ConfigError: for an empty data set.

    Example:
        >>> sorted(Order(5, seed=0).indices(np.arange(5)).tolist())
        [0, 1, 2, 3, 4]
    """

    ahead = BLOCK

    def __init__(self, num_samples: int, seed: int, shuffle: bool = True) -> None:
        if num_samples < 1:
            raise ConfigError("the data set is empty: nothing to train on; check data.path")
        self.num_samples, self.seed, self.shuffle = num_samples, seed, shuffle
        self._half_bits = max(1, ((num_samples - 1).bit_length() + 1) // 2)
        self._block_start = -1
        self._block = np.empty(0, np.int64)

    def indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Computes the dataset indices at positions.

        Args:
            positions: int64, ascending.

        Returns:
            int64, of the same shape.
        """
        if not self.shuffle:
            return positions % self.num_samples
        if not len(positions):
            return positions.copy()
        start = int(positions[0]) // BLOCK * BLOCK
        if int(positions[-1]) >= start + BLOCK:
            return self._compute(positions)
        if start != self._block_start:
            self._block, self._block_start = self._compute(np.arange(start, start + BLOCK)), start
        return self._block[positions - start]

    def epoch(self, number: int) -> NDArray[np.int64]:
        """Computes the indices of an epoch, in order.

        Args:
            number: of the epoch, from 0.

        Returns:
            int64 [num_samples].
        """
        positions = np.arange(number * self.num_samples, (number + 1) * self.num_samples)
        return self._compute(positions) if self.shuffle else positions % self.num_samples

    def _compute(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        epochs, offsets = np.divmod(positions, self.num_samples)
        distinct, which = np.unique(epochs, return_inverse=True)
        # All epochs at once: a small data set has many in a block.
        keys = np.array(
            [[self._key(epoch, number) for epoch in distinct.tolist()] for number in range(_ROUNDS)], np.uint32
        )
        return self._permute(offsets, keys if len(distinct) == 1 else keys[:, which])

    def _key(self, epoch: int, number: int) -> int:
        return key_of(self.seed, "order", epoch, number) & 0xFFFFFFFF

    def _permute(self, offsets: NDArray[np.int64], keys: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Computes the indices of `offsets` [N] into epochs with `keys` [rounds, N], or [rounds, 1] for one epoch."""
        values = self._encrypt(offsets, keys)
        while len(outside := np.flatnonzero(values >= self.num_samples)):
            values[outside] = self._encrypt(values[outside], keys if keys.shape[1] == 1 else keys[:, outside])
        return values

    def _encrypt(self, values: NDArray[np.int64], keys: NDArray[np.uint32]) -> NDArray[np.int64]:
        # Halves of 32 bits take a third of the time of 64.
        mask = np.uint32((1 << self._half_bits) - 1)
        left, right = (values >> self._half_bits).astype(np.uint32), values.astype(np.uint32) & mask
        for key in keys:
            left, right = right, left ^ (mix(right ^ key) & mask)
        return (left.astype(np.int64) << self._half_bits) | right


class WeightedOrder:
    """An endless sequence of dataset indices, each drawn with a probability in proportion to its weight.

    With replacement, as by torch's WeightedRandomSampler, but each draw is a function of (seed, position) alone.

    Args:
        weights: [num_samples], finite, not negative and not all 0.
        num_samples: samples in the data set.
        seed: the seed of the run.

    Raises:
        ConfigError: for weights that are not of that kind.
    """

    shuffle, ahead = True, BLOCK

    def __init__(self, weights: Any, num_samples: int, seed: int) -> None:
        values = np.asarray(weights, np.float64)
        if values.shape != (num_samples,) or not np.isfinite(values).all() or (values < 0).any() or not values.any():
            raise ConfigError(
                f"weights of shape {[*values.shape]} must be a finite number of 0 or more for each of the "
                f"{num_samples} samples, and one above 0"
            )
        self.num_samples, self.seed = num_samples, seed
        self._chosen: NDArray[np.int64] = np.flatnonzero(
            values
        )  # a draw of exactly a boundary must not fall on a sample of weight 0
        self._sums = np.cumsum(values[self._chosen] / values.max())

    def indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Computes the dataset indices at positions.

        Args:
            positions: int64, of any order.

        Returns:
            int64, of the same shape.
        """
        drawn = words(key_of(self.seed, "weighted order"), torch.from_numpy(positions.ravel()), 2).numpy()
        uniform = ((drawn[:, 0] >> 5) * 2.0**26 + (drawn[:, 1] >> 6)) * 2.0**-53
        places = np.searchsorted(self._sums, uniform * self._sums[-1], side="right")
        drawn_indices: NDArray[np.int64] = self._chosen[np.minimum(places, len(self._chosen) - 1)]
        return drawn_indices.reshape(positions.shape)


def mix(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The finaliser of MurmurHash3: every bit of a word decides every bit of its hash.

    Args:
        words: of any shape; they are not changed.

    Returns:
        Of the same shape.
    """
    mixed = words ^ (words >> np.uint32(16))
    for shift, factor in ((13, 0x85EBCA6B), (16, 0xC2B2AE35)):
        mixed *= np.uint32(factor)
        mixed ^= mixed >> np.uint32(shift)
    return mixed
