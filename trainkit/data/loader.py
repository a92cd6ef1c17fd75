"""From a position to a batch: fetches a rank's share of each global batch, here or in worker processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from trainkit.data.batch import Batch
from trainkit.data.columns import columns_of, one_by_one, samples, take
from trainkit.data.generators import restored, seed_everything
from trainkit.data.iterable import Reading
from trainkit.data.order import Order, WeightedOrder
from trainkit.data.sampler import SamplerOrder
from trainkit.random import key_of

Collate = Callable[[list[Any]], Any]
AnyOrder = Order | WeightedOrder | SamplerOrder

_PLANNED = 64
"""Batches of which the positions and indices are tensors at a time: thousands of small ones do not stay in a cache."""


class Fetcher:
    """Maps the position of a global batch to this rank's share of it; picklable, so that loader workers can hold it.

    A data set is asked in the cheapest way it offers: columns are indexed at once; `__getitems__(indices)` is called
    once, and what it returns is collated if it is a list of samples and taken as collated if it is a tree of tensors;
    else `__getitem__` is called for each sample, with `random`, `numpy.random` and `torch` seeded by the sample's
    position, so that random transforms inside a data set do not depend on ranks, workers or resumes.
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
        # A pass over held-out samples ends with a ragged batch; training never does.
        self.end = None if order.shuffle else order.num_samples
        self._planned_from, self._plans = 0, list[tuple[Tensor, Tensor]]()

    def __getitem__(self, position: int) -> Batch:
        size = self.batch_size if self.end is None else min(self.batch_size, self.end - position)
        positions, indices = self._planned(position) if size == self.batch_size else self._plan(position, 1, size)[0]
        return Batch(self._fetch(indices, positions), position, size, positions, indices)

    def _planned(self, position: int) -> tuple[Tensor, Tensor]:
        number, rest = divmod(position - self._planned_from, self.batch_size)
        if rest or not 0 <= number < len(self._plans):
            count = min(_PLANNED, max(1, self.order.ahead // self.batch_size))
            self._planned_from, self._plans, number = position, self._plan(position, count, self.batch_size), 0
        return self._plans[number]

    def _plan(self, position: int, count: int, size: int) -> list[tuple[Tensor, Tensor]]:
        """Positions and dataset indices of this rank's shares of `count` batches of `size` from `position` on."""
        starts = np.arange(position, position + count * size, size, dtype=np.int64)
        positions = starts[:, None] + np.arange(self.rank, size, self.world_size, dtype=np.int64)
        indices = self.order.indices(positions.ravel()).reshape(positions.shape)
        return list(zip(torch.from_numpy(positions).unbind(), torch.from_numpy(indices).unbind(), strict=True))

    def _fetch(self, indices: Tensor, positions: Tensor) -> Any:
        if self.columns is not None and self.collate is None:
            return take(self.columns, indices)
        if len(indices) == 0:
            # The shape of a share without samples is that of any sample, cut to none.
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
    """Batches at `positions`, on `device`, in order; `num_workers` processes fetch ahead (0: this process does).

    Of a Reading those that it gives, and one process at most: each would read all.
    """
    if num_workers > 0:
        return _fetched_ahead(fetcher, positions, num_workers=num_workers, device=device, dtype=dtype)
    batches = iter(fetcher) if isinstance(fetcher, Reading) else map(fetcher.__getitem__, positions)
    if device.type == "cpu" and dtype != torch.float64:
        return batches  # `Batch.to` would change nothing
    return (batch.to(device, dtype) for batch in batches)


def _fetched_ahead(
    fetcher: Fetcher | Reading,
    positions: Sequence[int],
    *,
    num_workers: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Batch]:
    loader: DataLoader[Batch] = DataLoader(
        fetcher,  # type: ignore[arg-type]  # a map from position to batch is all that a sampler's keys need
        sampler=None if isinstance(fetcher, Reading) else positions,
        batch_size=None,
        num_workers=1 if isinstance(fetcher, Reading) else num_workers,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        # Its own generator: the loader must not draw from the global one.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_obey_the_parent_alone,
    )
    with _deaf():
        batches = iter(loader)  # makes the workers
    for batch in batches:
        yield batch.to(device, dtype)


_FOR_THE_RUN = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are made here do not hear the signals by which a run is told to end.

    Terminals, torchrun and Slurm signal whole groups of processes, and the last steps and the save need the workers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_RUN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey_the_parent_alone(worker: int) -> None:
    """Ends this worker on a SIGTERM from the process that it fetches for, as multiprocessing sends at its exit."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_RUN)  # also where workers are not forked
    process = multiprocessing.parent_process()
    assert process is not None
    parent = process.pid  # not os.getppid(), which is the server's with start method forkserver

    def listen() -> None:
        while signal.sigwaitinfo(_FOR_THE_RUN).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()


def _as_it_is(batch: Any) -> Any:
    return batch
