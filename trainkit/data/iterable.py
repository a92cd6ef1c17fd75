"""Reading: the local batches of iterable data, which every rank reads from its start."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset, default_collate

from trainkit.data.batch import Batch
from trainkit.data.columns import samples
from trainkit.data.fingerprint import fingerprint
from trainkit.data.generators import restored, seed_everything
from trainkit.errors import ConfigError
from trainkit.random import key_of


def is_iterable_only(source: Any) -> bool:
    """Whether `source` can be iterated repeatedly, but has no samples to index.

    An iterator, such as a generator, can be read only once, and so does not count.
    """
    if isinstance(source, IterableDataset):
        return True
    has_index = hasattr(source, "__getitem__") or hasattr(source, "__len__")
    return isinstance(source, Iterable) and not has_index and not isinstance(source, Iterator)


class Reading(IterableDataset[Batch]):
    """The local batches of an iterable data set, from a position on.

    Sample n of an epoch is the n-th that the source yields. Before each epoch its `set_epoch(epoch)` is called, where
    it has one, and before each sample the global generators are seeded by the sample's position. Every rank reads every
    sample, so that the batches do not depend on the number of ranks. A later `start` reads again what lies before it in
    its epoch, and one more whole epoch, for the length, if it lies behind the first.

    Args:
        source: an iterable that starts from the beginning each time.
        seed: the seed of the run.
        batch_size: samples in a global batch.
        rank: of this process.
        world_size: number of ranks.
        collate: makes a batch of a list of samples; None: torch's default_collate.
        start: samples before the first batch.
        num_steps: batches; None: without end.
        repeat: False: one epoch, whose last batch may be smaller.
    """

    def __init__(
        self,
        source: Any,
        *,
        seed: int,
        batch_size: int,
        rank: int,
        world_size: int,
        collate: Any,
        start: int = 0,
        num_steps: int | None = None,
        repeat: bool = True,
    ) -> None:
        self.source, self.seed, self.batch_size = source, seed, batch_size
        self.rank, self.world_size, self.collate = rank, world_size, collate or default_collate
        self.start, self.num_steps, self.repeat = start, num_steps, repeat
        self._name = type(source).__name__

    def first(self) -> str:
        """Fingerprints the first sample.

        Returns:
            The fingerprint.

        Raises:
            ConfigError: where a second iteration begins with another sample.
        """
        prints = []
        for _ in range(2):
            with restored():
                item = next(iter(self._numbered(0)), None)
            prints.append(fingerprint(item[1] if item is not None else None))
        if prints[0] != prints[1]:
            raise ConfigError(
                f"the data source {self._name} continues, or gives another sample, when it is iterated a second time: "
                f"__iter__ must start from the beginning each time, with an order that depends on set_epoch(epoch) and "
                f"the global generators alone; else give list(source), or files that can be read by index"
            )
        return prints[0]

    def __iter__(self) -> Iterator[Batch]:
        numbered, position, done = self._numbered(self.start), self.start, 0
        while self.num_steps is None or done < self.num_steps:
            with restored():
                taken = [*islice(numbered, self.batch_size)]
            if not taken:
                return
            yield self._local_batch(taken, position)
            position, done = position + len(taken), done + 1

    def _local_batch(self, taken: list[tuple[int, Any]], position: int) -> Batch:
        mine = taken[self.rank :: self.world_size]
        data = self.collate([item for _, item in mine or taken[:1]])
        return Batch(
            data if mine else samples(data, 1, slice(0)),
            position,
            len(taken),
            torch.arange(len(taken))[self.rank :: self.world_size] + position,
            torch.tensor([index for index, _ in mine], dtype=torch.int64),
        )

    def _numbered(self, position: int) -> Iterator[tuple[int, Any]]:
        """Yields (number in its epoch, sample) from `position` on. Leaves the global generators seeded."""
        epoch, before, length = 0, 0, 0
        while True:
            count = 0
            for item in self._epoch(epoch, before):
                if before + count >= position:
                    yield count, item
                count += 1
            if not count or (length and count != length):
                raise ConfigError(
                    f"the data source {self._name} gives {count} samples in epoch {epoch}"
                    + (f" and {length} in epoch 0" if length else "")
                    + ": every iteration must give the same number, and at least one"
                )
            if not self.repeat:
                return
            length = count
            further = max(1, (position - before) // length)
            epoch, before = epoch + further, before + further * length

    def _epoch(self, number: int, before: int) -> Iterator[Any]:
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(number)
        seed_everything(key_of(self.seed, "epoch", number))
        iterator = iter(self.source)
        while True:
            seed_everything(key_of(self.seed, "sample", before))
            try:
                item = next(iterator)
            except StopIteration:
                return
            yield item
            before += 1
