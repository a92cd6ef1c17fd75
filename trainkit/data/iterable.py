"""Data that can only be read from its start: every rank reads all of it and keeps its share."""

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
    """Whether `source` can be read again and again from its start, but has no samples to index.

    What is its own iterator, such as a generator, can be read once, and so is not.
    """
    if isinstance(source, IterableDataset):
        return True
    has_index = hasattr(source, "__getitem__") or hasattr(source, "__len__")
    return isinstance(source, Iterable) and not has_index and not isinstance(source, Iterator)


class Reading(IterableDataset[Batch]):
    """This rank's shares of the global batches of an iterable data set, from position `start` on.

    Sample n of an epoch is the n-th that the source gives. Before each epoch its `set_epoch(epoch)` is called where
    it has one, and before each sample the global generators are seeded by the sample's position. Every rank reads
    every sample, so that the batches are the same on any number of them. A start at a later position reads again what
    lies before it in its epoch, and one whole epoch more, for the length, where it lies behind the first.

    repeat: false: one epoch, whose last batch may be ragged.
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
        """A fingerprint of the first sample. Raises ConfigError where a second reading begins with another one."""
        prints = []
        for _ in range(2):
            with restored():
                item = next(iter(self._numbered(0)), None)
            prints.append(fingerprint(item[1] if item is not None else None))
        if prints[0] != prints[1]:
            raise ConfigError(
                f"the data source {self._name} goes on, or gives another sample, where it is iterated a second time: "
                f"__iter__ must begin anew each time, with an order that depends on set_epoch(epoch) and the global "
                f"generators alone; else give list(source), or files that can be read by index"
            )
        return prints[0]

    def __iter__(self) -> Iterator[Batch]:
        numbered, position, done = self._numbered(self.start), self.start, 0
        while self.num_steps is None or done < self.num_steps:
            with restored():
                taken = [*islice(numbered, self.batch_size)]
            if not taken:
                return
            yield self._share(taken, position)
            position, done = position + len(taken), done + 1

    def _share(self, taken: list[tuple[int, Any]], position: int) -> Batch:
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
        """(number in its epoch, sample) from `position` on. Leaves the global generators seeded."""
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
                    + ": every time it is iterated it must give as many, and at least one"
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
