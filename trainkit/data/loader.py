"""Fetcher: a rank's local batch at each position, fetched in this process or in workers."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from trainkit.data.ahead import fetched_ahead
from trainkit.data.batch import Batch
from trainkit.data.block_order import BlockOrder
from trainkit.data.columns import columns_of, one_by_one, samples, take
from trainkit.data.generators import restored, seed_everything
from trainkit.data.iterable import Reading
from trainkit.data.mixture_order import MixtureOrder
from trainkit.data.order import Order, WeightedOrder
from trainkit.data.sampler import SamplerOrder
from trainkit.data.workers import AHEAD, ProcessWorkers, ThreadWorkers
from trainkit.random import key_of

Collate = Callable[[list[Any]], Any]
AnyOrder = Order | BlockOrder | MixtureOrder | WeightedOrder | SamplerOrder

_PLANNED = 64
"""Batches whose positions and indices are computed at a time: more small tensors would not stay in the CPU's cache."""
_ANNOUNCED = 4
"""Batches of this process that a data set with `prefetch` is told of before they are asked for, at least."""
_COMING_BYTES = 1 << 26
"""Of a data set that says how much is still to come: while it is less, more batches are announced. At 1 GB/s, a store
that answers after 60 ms is kept busy by as much."""
_MOST_ANNOUNCED, _MORE_ANNOUNCED = 1 << 14, 8
"""Samples that are announced so, and batches in addition to each that is asked for."""


class Fetcher:
    """Maps the position of a global batch to this rank's local batch; picklable, so that loader workers can hold it.

    Samples are read in the fastest way that a data set offers: columns are indexed at once; `__getitems__(indices)` is
    called once, and a list that it returns is collated, while a tree of tensors is already a batch; else `__getitem__`
    is called for each sample, with `random`, `numpy.random` and `torch` seeded by the sample's position, so that random
    transforms inside a data set do not depend on ranks, workers or resumes.

    A data set with `prefetch(indices)` is told, in their order, of the samples of the batches that this process will
    ask for next; it must return at once.

    Args:
        source: columns or a map-style data set.
        order: position -> index in the data set.
        batch_size: samples in a global batch.
        rank: of this process.
        world_size: number of ranks.
        collate: makes a batch of a list of samples; None: torch's default_collate.
    """

    def __init__(
        self,
        source: Any,
        order: AnyOrder,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        collate: Collate | None,
    ) -> None:
        self.columns = columns_of(source)
        self.source = source
        self.order, self.batch_size, self.rank, self.world_size = order, batch_size, rank, world_size
        self.collate = collate
        # A pass over held-out samples ends with a smaller batch; training never does.
        self.end = None if order.shuffle else order.num_samples
        self._planned_from, self._plans = 0, list[tuple[Tensor, Tensor]]()
        self._prefetch: Callable[[NDArray[np.int64]], int | None] | None = getattr(source, "prefetch", None)
        self._announced = -1  # the position of the last batch that the source was told of
        self._num_in_turn = 1

    @property
    def is_thread_safe(self) -> bool:
        """Whether threads may fetch: of columns, and where the data set has `is_thread_safe`, which those here have.

        Without `__getitems__`, a data set is read in the order of its samples, with generators of the process.
        """
        if self.collate is not None:
            return False
        return self.columns is not None or (
            bool(getattr(self.source, "is_thread_safe", False)) and hasattr(self.source, "__getitems__")
        )

    def __getitem__(self, position: int) -> Batch:
        return self.prepare(position)()

    def prepare(self, position: int) -> Callable[[], Batch]:
        """Returns what fetches the batch at a position, in any thread where `is_thread_safe`. Called by one thread."""
        size = self.batch_size if self.end is None else min(self.batch_size, self.end - position)
        positions, indices = self._planned(position) if size == self.batch_size else self._plan(position, 1, size)[0]
        return lambda: Batch(self._fetch(indices, positions), position, size, positions, indices)

    def in_turn(self, num_workers: int) -> "Fetcher":
        """Returns a copy for one of several processes that fetch the batches in turn."""
        fetcher = copy(self)
        fetcher._num_in_turn = num_workers
        return fetcher

    def _planned(self, position: int) -> tuple[Tensor, Tensor]:
        number, rest = divmod(position - self._planned_from, self.batch_size)
        if rest or not 0 <= number < len(self._plans):
            self._planned_from, self._plans, number = position, self._next_plans(position), 0
        plan = self._plans[number]
        if self._prefetch is not None:
            self._announce(position, self._prefetch)
        return plan

    def _next_plans(self, position: int) -> list[tuple[Tensor, Tensor]]:
        count = min(_PLANNED, max(1, self.order.ahead // self.batch_size))
        return self._plan(position, count, self.batch_size)

    def _announce(self, position: int, prefetch: Callable[[NDArray[np.int64]], int | None]) -> None:
        """Tells the source of this batch and the next ones of this process, as many as keep a store busy."""
        stride = self.batch_size * self._num_in_turn
        least = max(position + _ANNOUNCED * stride, self._announced)
        most = position + max(_ANNOUNCED, _MOST_ANNOUNCED * self.world_size // self.batch_size) * stride
        most = min(most, least + _MORE_ANNOUNCED * stride)
        if self.end is not None:  # the batch at the end is smaller, and planned when it is asked for
            most = min(most, position + max(0, self.end - self.batch_size - position) // stride * stride)
        announced = position if self._announced < position else self._announced + stride
        while announced <= most:
            coming = prefetch(self._plan_of(position, announced)[1].numpy())
            self._announced = announced
            if announced >= least and (coming is None or coming >= _COMING_BYTES):
                break
            announced += stride

    def _plan_of(self, position: int, later: int) -> tuple[Tensor, Tensor]:
        """Returns the plan of a later batch, while the one at a position is asked for."""
        while self._planned_from + len(self._plans) * self.batch_size <= later:
            passed = (position - self._planned_from) // self.batch_size
            more = self._next_plans(self._planned_from + len(self._plans) * self.batch_size)
            self._planned_from, self._plans = position, self._plans[passed:] + more
        return self._plans[(later - self._planned_from) // self.batch_size]

    def _plan(self, position: int, count: int, size: int) -> list[tuple[Tensor, Tensor]]:
        """Computes positions and indices of the local batches of `count` global ones of `size` from `position` on."""
        starts = np.arange(position, position + count * size, size, dtype=np.int64)
        positions = starts[:, None] + np.arange(self.rank, size, self.world_size, dtype=np.int64)
        indices = self.order.indices(positions.ravel()).reshape(positions.shape)
        return list(zip(torch.from_numpy(positions).unbind(), torch.from_numpy(indices).unbind(), strict=True))

    def _fetch(self, indices: Tensor, positions: Tensor) -> Any:
        if self.columns is not None and self.collate is None:
            return take(self.columns, indices)
        if len(indices) == 0:
            # An empty local batch has the shape of any sample, with 0 samples.
            return samples(self._collated([0], torch.zeros(1, dtype=torch.int64)), 1, slice(0))
        return self._collated(indices.tolist(), positions)

    def _collated(self, indices: list[int], positions: Tensor) -> Any:
        collate = self.collate or default_collate
        if self.columns is not None:
            return collate(one_by_one(self.columns, indices))
        if hasattr(self.source, "__getitems__"):
            items = self.source.__getitems__(indices)
            return collate(items) if isinstance(items, list) else items
        with restored():
            items = []
            for index, position in zip(indices, positions.tolist(), strict=True):
                seed_everything(key_of(self.order.seed, "sample", position))
                items.append(self.source[index])
        return collate(items)


def stream(
    fetcher: Fetcher | Reading,
    positions: Sequence[int],
    *,
    num_workers: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Batch]:
    """Yields batches on a device, in order.

    Args:
        fetcher: of the local batches; a Reading decides its positions itself, and is read by at most one worker, since
            each would read everything.
        positions: of the global batches.
        num_workers: threads that fetch ahead where the data allow it (`Fetcher.is_thread_safe`), else processes; 0:
            this process fetches.
        device: where the data is needed.
        dtype: of floating-point data, see `Batch.to`.

    Returns:
        An iterator of batches.
    """
    if num_workers > 0:
        reads = isinstance(fetcher, Reading)
        return fetched_ahead(
            partial(_workers, fetcher, num_workers),
            range(1 << 62) if reads else positions,
            ahead=AHEAD if reads else AHEAD * num_workers,
            device=device,
            dtype=dtype,
        )
    batches = iter(fetcher) if isinstance(fetcher, Reading) else map(fetcher.__getitem__, positions)
    if device.type == "cpu" and dtype != torch.float64:
        return batches  # `Batch.to` would change nothing
    return (batch.to(device, dtype) for batch in batches)


def _workers(fetcher: Fetcher | Reading, num_workers: int) -> ProcessWorkers | ThreadWorkers:
    if isinstance(fetcher, Reading):
        return ProcessWorkers(_InOrder(fetcher), 1)
    if fetcher.is_thread_safe:
        return ThreadWorkers(fetcher.prepare, num_workers)
    return ProcessWorkers(fetcher.in_turn(num_workers).__getitem__, num_workers)


class _InOrder:
    """The batches of a Reading one after the other, whatever the positions that are asked for."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._batches: Iterator[Batch] | None = None  # made in the process that fetches

    def __call__(self, position: int) -> Batch | None:
        if self._batches is None:
            self._batches = iter(self._reading)
        return next(self._batches, None)
