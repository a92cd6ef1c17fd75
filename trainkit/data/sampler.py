"""SamplerOrder: the order of a torch Sampler, a BatchSampler or a function, as a pure function of seed and position."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack, contextmanager
from itertools import islice
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainkit.data.generators import restored, seed_everything
from trainkit.data.order import BLOCK
from trainkit.errors import ConfigError
from trainkit.random import key_of

_NUM_CACHED = 2  # epochs: a batch may begin in one and end in the next


class SamplerOrder:
    """An endless sequence of dataset indices, epoch after epoch, each as `sampler` gives it.

    Every epoch must have the length of the first, and must give the same indices when it is drawn again.

    Args:
        sampler: a function (seed, epoch) -> indices; or an iterable with a length, such as a torch Sampler, or a
            BatchSampler of batches of `batch_size`. Before each epoch its `set_epoch(epoch)` is called, where it has
            one, and its `generator` and the global generators are seeded by (seed, epoch).
        num_samples: samples in the data set.
        seed: the seed of the run.
        batch_size: samples in a global batch.
        start: samples before the first batch.

    Raises:
        ConfigError: for a sampler that is none of these, or whose epochs are not reproducible.
    """

    shuffle = True

    def __init__(self, sampler: Any, num_samples: int, seed: int, *, batch_size: int, start: int = 0) -> None:
        self.sampler, self.num_samples, self.seed, self.batch_size = sampler, num_samples, seed, batch_size
        self.name = sampler.__name__ if isinstance(sampler, FunctionType) else type(sampler).__name__
        self._is_batched = False
        self._epochs: dict[int, NDArray[np.int64]] = {}
        first = self._drawn(0)
        self.length = len(first)
        if not self.length:
            raise ConfigError(f"order={self.name} gives no index")
        if self._is_batched and start % batch_size:
            raise ConfigError(
                f"start={start} is within one of the batches of {batch_size} that order={self.name} gives"
            )
        self.ahead = min(BLOCK, self.length)  # each epoch of a small data set may be slow to draw
        self._require_pure(start // self.length)

    def indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Computes the dataset indices at positions.

        Args:
            positions: int64.

        Returns:
            int64, of the same shape.
        """
        epochs, offsets = np.divmod(positions, self.length)
        found = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            found[chosen] = self.epoch(epoch)[offsets[chosen]]
        return found

    def epoch(self, number: int) -> NDArray[np.int64]:
        """Returns the indices of an epoch, in order.

        Args:
            number: of the epoch, from 0.

        Returns:
            int64 [length].

        Raises:
            ConfigError: where the length differs from that of the first epoch, or an index is out of range.
        """
        if number not in self._epochs:
            drawn = self._drawn(number)
            if len(drawn) != self.length:
                raise ConfigError(
                    f"order={self.name} gives {len(drawn)} indices in epoch {number} and {self.length} in epoch 0: "
                    f"each must have the same number, so that a position is always in the same epoch"
                )
            while len(self._epochs) >= _NUM_CACHED:
                del self._epochs[min(self._epochs)]
            self._epochs[number] = drawn
        return self._epochs[number]

    def _require_pure(self, number: int) -> None:
        """Raises ConfigError where an epoch depends on what was drawn before it."""
        before = self.epoch(number)
        self.epoch(number + 1)
        if not np.array_equal(before, self._drawn(number)):
            raise ConfigError(
                f"order={self.name} gives other indices when epoch {number} is drawn again, so no run could resume: "
                f"let it draw from torch's generator or from one that set_epoch(epoch) seeds, or give a function "
                f"(seed, epoch) -> indices"
            )

    def _drawn(self, number: int) -> NDArray[np.int64]:
        key = key_of(self.seed, "own order", number)
        with restored(), _seeded(self.sampler, key, number):
            seed_everything(key)
            if callable(self.sampler) and not isinstance(self.sampler, Iterable):
                given = self.sampler(self.seed, number)
            else:
                given = self._iterated(self.sampler)
        return self._checked(given, number)

    def _iterated(self, sampler: Any) -> Any:
        if isinstance(sampler, np.ndarray | torch.Tensor):
            return sampler
        if not (isinstance(sampler, Iterable) and isinstance(sampler, Sized)):
            raise ConfigError(
                f"order={self.name}: must be a function (seed, epoch) -> indices, or an iterable with a length that "
                f"can be iterated in every epoch, such as a torch Sampler: give it a __len__"
            )
        most = len(sampler)
        indices = [*islice(sampler, most + 1)]
        if len(indices) > most:
            raise ConfigError(
                f"order={self.name} gives more than the {most} indices of its len: an epoch must end there"
            )
        return indices

    def _checked(self, given: Any, number: int) -> NDArray[np.int64]:
        if isinstance(given, list) and given and np.ndim(given[0]):
            self._is_batched = True
            for number_in_epoch, batch in enumerate(given):
                if len(batch) != self.batch_size:
                    raise ConfigError(
                        f"order={self.name}: batch {number_in_epoch} of epoch {number} has {len(batch)} indices, and "
                        f"batch_size={self.batch_size}, which is the global batch: give it batches of one size "
                        f"(drop_last=True), or batch_size={len(given[0])}"
                    )
            given = [index for batch in given for index in batch]
        indices = np.asarray(given)
        if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
            raise ConfigError(
                f"order={self.name} gives a {type(given).__name__} of {indices.dtype} of shape {[*indices.shape]} for "
                f"epoch {number}: it must give integers, one for each sample"
            )
        wrong = indices[(indices < 0) | (indices >= self.num_samples)]
        if len(wrong):
            raise ConfigError(
                f"order={self.name} gives index {wrong[0]} in epoch {number}: it must be 0 to {self.num_samples - 1}"
            )
        return indices.astype(np.int64)


@contextmanager
def _seeded(sampler: Any, key: int, epoch: int) -> Iterator[None]:
    """Sets `sampler` and those that it wraps to `epoch`, and their generators to `key` until exit."""
    with ExitStack() as after:
        for wrapped in _wrapped_samplers(sampler):
            generator = getattr(wrapped, "generator", None)
            if isinstance(generator, torch.Generator):
                after.callback(generator.set_state, generator.get_state())
                generator.manual_seed(key)
            set_epoch: Callable[[int], None] | None = getattr(wrapped, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)
        yield


def _wrapped_samplers(sampler: Any) -> Iterator[Any]:
    """Yields the sampler, the one that it wraps, and so on."""
    seen: list[Any] = []
    while sampler is not None and not any(sampler is wrapped for wrapped in seen):
        yield sampler
        seen.append(sampler)
        sampler = getattr(sampler, "sampler", None) or getattr(sampler, "batch_sampler", None)
