"""Feed: this rank's part in the data, and the random numbers that go with it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from trainkit import random as keyed
from trainkit.clock import Clock
from trainkit.comm.cluster import Cluster
from trainkit.data.batch import Batch
from trainkit.data.columns import num_samples_of
from trainkit.data.dataloader import Parts, parts_of
from trainkit.data.fingerprint import fingerprint
from trainkit.data.generators import seed_everything
from trainkit.data.iterable import Reading, is_iterable_only
from trainkit.data.loader import AnyOrder, Collate, Fetcher, stream
from trainkit.data.order import Order, WeightedOrder
from trainkit.data.sampler import SamplerOrder
from trainkit.errors import ConfigError, require_at_least
from trainkit.ranks import Ranks

_KEYS_AHEAD = 64
"""Keys that are worked out at a time: one by one, between the calls of a step, each takes several times as long."""


class Feed(Ranks):
    """What a rank gets of the data: every sample and every draw is a function of the seed and the position alone.

    seed: of the order of the data, and of all that is random.  dtype: of parameters and of floating-point data.
    num_workers: processes that fetch data ahead.
    """

    def __init__(
        self,
        cluster: Cluster,
        device: torch.device,
        *,
        needs_group: bool,
        seed: int,
        dtype: torch.dtype,
        num_workers: int,
    ) -> None:
        super().__init__(cluster, device, needs_group=needs_group)
        self.seed, self.num_workers = seed, num_workers
        self.dtype = dtype
        """What parameters are stored in: float32, or float64 with precision fp64."""
        self._clock = Clock(seed)
        self._num_samples: int | None = None
        self._keys: dict[int, int] = {}  # of the global generators, by the position of a batch

    @property
    def position(self) -> int:
        """Samples in the steps done so far."""
        return self._clock.position

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
        """This rank's shares of the global batches from position `start` on; endless unless `num_steps` is given.

        source: a tensor or an array, a tuple or dict of them (a dict may also hold lists), or a map-style data set,
            such as a list of samples. With `collate`, every source gives it a list of samples. Of a DataLoader its
            data set, collate_fn, order and number of workers are taken. An iterable data set is read by every rank,
            which keeps its share; a later `start` reads again what lies before it. See `data.iterable.Reading`.
        batch_size: samples in a global batch, of all ranks together.  start: samples before the first one.
        weights: [number of samples], an array or a tensor: samples are drawn with replacement, each with a probability
            in proportion to its weight, as by torch's WeightedRandomSampler; without, every epoch holds each once.
        order: the order of each epoch in place of a shuffled one: a function (seed, epoch) -> indices, a torch Sampler
            or a BatchSampler of global batches. It must give the same again when it is asked again.
        The samples, their order and their seeds are functions of (seed, position) alone. Raises ConfigError at once,
        also where ranks were given other data or numbers. Collective: every rank calls.
        """
        require_at_least(1, batch_size=batch_size)
        require_at_least(0, start=start, num_steps=num_steps, num_workers=num_workers)
        if batch_size < self.world_size:
            raise ConfigError(
                f"batch_size={batch_size} is the global batch, and {self.world_size} ranks need a sample each: "
                f"give batch_size={self.world_size} or more, or start fewer processes"
            )
        start = int(start)
        parts = parts_of(source, collate=collate, order=order, num_workers=num_workers)
        fetcher = self._training_fetcher(parts, batch_size, weights, start, num_steps)
        reads, several = isinstance(fetcher, Reading), self.world_size > 1
        self.require_same(
            {
                "batch_size": batch_size,
                "start": start,
                "num_steps": num_steps,
                "len(data)": None if reads else num_samples_of(parts.dataset),
                "fingerprint of the data": fingerprint(parts.dataset) if several else None,
                "fingerprint of weights": fingerprint(weights) if several else None,
                **_looked_at(fetcher, start),
            }
        )
        end = start + num_steps * batch_size if num_steps is not None else None
        self._num_samples = end
        positions = range(start, end if end is not None else 1 << 62, batch_size)
        self._clock.position = start
        return self._arrivals(self._stream(fetcher, positions, parts.num_workers))

    def evaluation_batches(
        self, source: Any, *, batch_size: int, num_workers: int | None = None, collate: Collate | None = None
    ) -> Iterator[Batch]:
        """Every sample once, in order; the last global batch may be ragged.

        Every rank gets as many batches, so that a strategy may communicate in each; a share may have no sample.
        """
        require_at_least(1, batch_size=batch_size)
        require_at_least(0, num_workers=num_workers)
        parts = parts_of(source, collate=collate, num_workers=num_workers)
        parts.require_all_in_order()
        if is_iterable_only(parts.dataset):
            reading = self._reading(parts, batch_size, repeat=False)
            return self._iterated(self._stream(reading, range(0), parts.num_workers), is_training=False)
        num_samples = num_samples_of(parts.dataset)
        fetcher = self._fetcher(parts, Order(num_samples, self.seed, shuffle=False), batch_size)
        batches = self._stream(fetcher, range(0, num_samples, batch_size), parts.num_workers)
        return self._iterated(batches, is_training=False)

    def rand(self, batch: Batch, *shape: int, name: str) -> Tensor:
        """Uniform in [0, 1), [len(batch), *shape]: a function of (seed, name, positions of the samples)."""
        key = keyed.key_of(self.seed, "rand", name)
        return keyed.rand(key, batch.positions.to(self.device), shape, self.dtype)

    def randn(self, batch: Batch, *shape: int, name: str) -> Tensor:
        """Standard normal, [len(batch), *shape]: a function of (seed, name, positions of the samples)."""
        key = keyed.key_of(self.seed, "randn", name)
        return keyed.randn(key, batch.positions.to(self.device), shape, self.dtype)

    def _training_fetcher(
        self, parts: Parts, batch_size: int, weights: Any, start: int, num_steps: int | None
    ) -> Fetcher | Reading:
        if weights is not None and parts.order is not None:
            raise ConfigError("weights and order (or a DataLoader's sampler) are given: each decides it all; give one")
        if is_iterable_only(parts.dataset):
            if weights is not None or parts.order is not None:
                name = type(parts.dataset).__name__
                raise ConfigError(f"weights and order need a data set with samples to index, and {name} has none")
            return self._reading(parts, batch_size, start=start, num_steps=num_steps)
        num_samples = num_samples_of(parts.dataset)
        order: AnyOrder = Order(num_samples, self.seed)
        if weights is not None:
            order = WeightedOrder(weights, num_samples, self.seed)
        elif parts.order is not None:
            order = SamplerOrder(parts.order, num_samples, self.seed, batch_size=batch_size, start=start)
        return self._fetcher(parts, order, batch_size)

    def _fetcher(self, parts: Parts, order: AnyOrder, batch_size: int) -> Fetcher:
        return Fetcher(
            parts.dataset,
            order,
            batch_size=batch_size,
            rank=self.rank,
            world_size=self.world_size,
            collate=parts.collate,
        )

    def _reading(self, parts: Parts, batch_size: int, **bounds: Any) -> Reading:
        return Reading(
            parts.dataset,
            seed=self.seed,
            batch_size=batch_size,
            rank=self.rank,
            world_size=self.world_size,
            collate=parts.collate,
            **bounds,
        )

    def _stream(self, fetcher: Fetcher | Reading, positions: range, num_workers: int | None) -> Iterator[Batch]:
        workers = self.num_workers if num_workers is None else num_workers
        return stream(fetcher, positions, num_workers=workers, device=self.device, dtype=self.dtype)

    def _arrivals(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in self._iterated(batches, is_training=True):
            self.stand_at(batch)
            yield batch

    def stand_at(self, batch: Batch) -> None:
        """The next calls are about `batch`, as they are once `batches` has given it."""
        # Layers that draw from the global generators repeat their draws after a resume.
        if batch.position not in self._keys:
            positions = range(batch.position, batch.position + _KEYS_AHEAD * batch.size, batch.size)
            self._keys = {position: self._global_key(position, self.rank) for position in positions}
        self._seed_globally(self._keys[batch.position])
        self._clock.arrive(batch)

    def leave_out(self) -> None:
        """Counts the batch that has come as done, without a step."""
        self._clock.stepped()

    def stretch_schedules(self, factor: float) -> None:
        """From the next step on, schedules of learning rates see positions times `factor`, the same on every rank.

        For a run that will end early: with `planned / expected` samples as the factor they still come to their ends.
        """
        self._clock.stretch = factor

    def _global_key(self, *where: int | str) -> int:
        return keyed.key_of(self.seed, "global", *where)

    def _seed_globally(self, key: int) -> None:
        seed_everything(key)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(key)

    def _iterated(self, batches: Iterator[Batch], *, is_training: bool) -> Iterator[Batch]:
        """`batches`, with what a run does around them."""
        return batches


def _looked_at(fetcher: Fetcher | Reading, start: int) -> dict[str, str]:
    """What only a look at the data or their order shows: ranks that split them by themselves."""
    if isinstance(fetcher, Reading):
        return {"fingerprint of the first sample of iterable data, of which every rank must read all": fetcher.first()}
    if isinstance(fetcher.order, SamplerOrder):
        return {
            "fingerprint of order, of which every rank must give all": fingerprint(
                fetcher.order.epoch(start // fetcher.order.length)
            )
        }
    return {}
