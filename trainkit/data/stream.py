"""DataStream: this rank's part of the data, and the random numbers that belong to it."""

from collections.abc import Callable, Generator, Iterator
from operator import index
from typing import Any

import torch
from torch import Tensor

from trainkit import random as keyed
from trainkit.data.batch import Batch
from trainkit.data.clock import Clock
from trainkit.data.columns import num_samples_of
from trainkit.data.dataloader import BatchSource, batch_source
from trainkit.data.fingerprint import fingerprint
from trainkit.data.generators import seed_everything
from trainkit.data.iterable import Reading, is_iterable_only
from trainkit.data.loader import AnyOrder, Collate, Fetcher, stream
from trainkit.data.order import Order, WeightedOrder
from trainkit.data.sampler import SamplerOrder
from trainkit.distributed.ranks import Ranks
from trainkit.errors import ConfigError, require_at_least

Wrap = Callable[[Iterator[Batch], bool], Iterator[Batch]]

_KEYS_AHEAD = 64
"""Keys computed at a time: one by one, between the calls of a step, each takes several times as long."""


class DataStream:
    """The data of a rank: every sample and every random number is a function of the seed and the position alone.

    Args:
        ranks: the processes that share the data.
        device: where batches are put.
        seed: of the order of the data, and of everything random.
        dtype: of floating-point data.
        num_workers: threads or processes that fetch data ahead.
        wrap: called with an iterator of batches, and whether they are for training; what it returns is iterated.
    """

    def __init__(
        self,
        ranks: Ranks,
        device: torch.device,
        *,
        seed: int,
        dtype: torch.dtype,
        num_workers: int,
        wrap: Wrap = lambda batches, is_training: batches,
    ) -> None:
        self.clock = Clock(seed)
        self.num_samples: int | None = None
        """The position at which training ends: of the last call of `batches`, or of the recipe; None: not known."""
        self._ranks, self._device, self._seed, self._dtype = ranks, device, seed, dtype
        self.num_workers = num_workers
        """Of the last call of `batches`."""
        self._num_workers, self._wrap = num_workers, wrap
        self._keys: dict[int, int] = {}  # of the global generators, by the position of a batch

    def batches(
        self,
        source: Any,
        *,
        batch_size: int,
        start: int = 0,
        num_steps: int | None = None,
        num_workers: int | None = None,
        collate: Collate | None = None,
        weights: Any = None,
        order: Any = None,
    ) -> Iterator[Batch]:
        """Returns an iterator of this rank's local batches; see `Runtime.batches`. Collective: every rank must call."""
        require_at_least(1, batch_size=batch_size)
        start = _as_position(start)
        require_at_least(0, start=start, num_steps=num_steps, num_workers=num_workers)
        if batch_size < self._ranks.world_size:
            raise ConfigError(
                f"batch_size={batch_size} is the global batch, and {self._ranks.world_size} ranks need a sample each: "
                f"set batch_size={self._ranks.world_size} or more, or start fewer processes"
            )
        given = batch_source(source, collate=collate, order=order, num_workers=num_workers)
        fetcher = self._training_fetcher(given, batch_size, weights, start, num_steps)
        reads, several = isinstance(fetcher, Reading), self._ranks.world_size > 1
        self._ranks.require_same(
            {
                "batch_size": batch_size,
                "start": start,
                "num_steps": num_steps,
                "len(data)": None if reads else num_samples_of(given.dataset),
                "fingerprint of the data": fingerprint(given.dataset) if several else None,
                "fingerprint of weights": fingerprint(weights) if several else None,
                **_fingerprints_read(fetcher, start),
            }
        )
        end = start + num_steps * batch_size if num_steps is not None else None
        self.num_samples = end
        self.num_workers = self._num_workers if given.num_workers is None else given.num_workers
        positions = range(start, end if end is not None else 1 << 62, batch_size)
        self.clock.position = start
        return self._arrivals(self._stream(fetcher, positions, given.num_workers))

    def evaluation_batches(
        self, source: Any, *, batch_size: int, num_workers: int | None = None, collate: Collate | None = None
    ) -> Iterator[Batch]:
        """Returns an iterator of this rank's local batches of held-out data; see `Runtime.evaluation_batches`."""
        require_at_least(1, batch_size=batch_size)
        require_at_least(0, num_workers=num_workers)
        given = batch_source(source, collate=collate, num_workers=num_workers)
        given.require_all_in_order()
        if is_iterable_only(given.dataset):
            reading = self._reading(given, batch_size, repeat=False)
            return self._wrapped(self._stream(reading, range(0), given.num_workers), False)
        num_samples = num_samples_of(given.dataset)
        fetcher = self._fetcher(given, Order(num_samples, self._seed, shuffle=False), batch_size)
        batches = self._stream(fetcher, range(0, num_samples, batch_size), given.num_workers)
        return self._wrapped(batches, False)

    def rand(self, batch: Batch, *shape: int, name: str) -> Tensor:
        """Draws from the uniform distribution on [0, 1), as a function of (seed, name, positions of the samples).

        Args:
            batch: the samples to draw for.
            shape: per sample.
            name: of this use of randomness.

        Returns:
            [len(batch), *shape], on the device of the run.
        """
        key = keyed.key_of(self._seed, "rand", name)
        return keyed.rand(key, batch.positions.to(self._device), shape, self._dtype)

    def randn(self, batch: Batch, *shape: int, name: str) -> Tensor:
        """Draws from the standard normal distribution, as a function of (seed, name, positions of the samples).

        Args:
            batch: the samples to draw for.
            shape: per sample.
            name: of this use of randomness.

        Returns:
            [len(batch), *shape], on the device of the run.
        """
        key = keyed.key_of(self._seed, "randn", name)
        return keyed.randn(key, batch.positions.to(self._device), shape, self._dtype)

    def _training_fetcher(
        self, given: BatchSource, batch_size: int, weights: Any, start: int, num_steps: int | None
    ) -> Fetcher | Reading:
        if weights is not None and given.order is not None:
            raise ConfigError("weights and order (or a DataLoader's sampler) are both given: remove one of them")
        if is_iterable_only(given.dataset):
            if weights is not None or given.order is not None:
                name = type(given.dataset).__name__
                raise ConfigError(f"weights and order need a data set with samples to index, and {name} has none")
            return self._reading(given, batch_size, start=start, num_steps=num_steps)
        num_samples = num_samples_of(given.dataset)
        order: AnyOrder = Order(num_samples, self._seed)
        if weights is not None:
            order = WeightedOrder(weights, num_samples, self._seed)
        elif given.order is not None:
            order = SamplerOrder(given.order, num_samples, self._seed, batch_size=batch_size, start=start)
        return self._fetcher(given, order, batch_size)

    def _fetcher(self, given: BatchSource, order: AnyOrder, batch_size: int) -> Fetcher:
        return Fetcher(
            given.dataset,
            order,
            batch_size=batch_size,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            collate=given.collate,
        )

    def _reading(self, given: BatchSource, batch_size: int, **bounds: Any) -> Reading:
        return Reading(
            given.dataset,
            seed=self._seed,
            batch_size=batch_size,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            collate=given.collate,
            **bounds,
        )

    def _stream(self, fetcher: Fetcher | Reading, positions: range, num_workers: int | None) -> Iterator[Batch]:
        workers = self._num_workers if num_workers is None else num_workers
        return stream(fetcher, positions, num_workers=workers, device=self._device, dtype=self._dtype)

    def _arrivals(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in self._wrapped(batches, True):
            self.visit(batch)
            yield batch

    def _wrapped(self, batches: Iterator[Batch], is_training: bool) -> Iterator[Batch]:
        try:
            yield from self._wrap(batches, is_training)
        finally:
            if isinstance(batches, Generator):
                batches.close()  # ends workers now, and not once nothing refers to it

    def visit(self, batch: Batch) -> None:
        """Makes `batch` the current one, as `batches` does before it yields one, and seeds the global generators."""
        # Layers that draw from the global generators draw the same numbers after a resume.
        if batch.position not in self._keys:
            positions = range(batch.position, batch.position + _KEYS_AHEAD * batch.size, batch.size)
            self._keys = {position: self._global_key(position, self._ranks.rank) for position in positions}
        self._seed_generators(self._keys[batch.position])
        self.clock.arrive(batch)

    def skip(self) -> None:
        """Counts the current batch as done, without a step."""
        self.clock.stepped()

    def stretch_schedules(self, factor: float) -> None:
        """Scales the positions that schedules of learning rates see, from the next step on.

        For a run that will end early: with `planned / expected` samples as the factor, schedules still reach their
        ends.

        Args:
            factor: the same on every rank.
        """
        self.clock.stretch = factor

    def seed_at_start(self) -> None:
        """Seeds the global generators alike on every rank, before modules are made."""
        self._seed_generators(self._global_key("start"))

    def _global_key(self, *where: int | str) -> int:
        return keyed.key_of(self._seed, "global", *where)

    def _seed_generators(self, key: int) -> None:
        seed_everything(key)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(key)


def _as_position(start: Any) -> int:
    try:
        return index(start)
    except TypeError:
        raise ConfigError(f"start={start!r}: must be a number of samples, such as runtime.load(...).position") from None


def _fingerprints_read(fetcher: Fetcher | Reading, start: int) -> dict[str, str]:
    """Fingerprints what has to be read first, to find ranks that divide the data themselves."""
    if isinstance(fetcher, Reading):
        return {"fingerprint of the first sample of iterable data, which every rank must read in full": fetcher.first()}
    if isinstance(fetcher.order, SamplerOrder):
        return {
            "fingerprint of order, which every rank must give in full": fingerprint(
                fetcher.order.epoch(start // fetcher.order.length)
            )
        }
    return {}
