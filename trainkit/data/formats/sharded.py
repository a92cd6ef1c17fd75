"""ShardedDataset: a map-style data set whose samples lie in shards."""

import hashlib
import operator
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from trainkit.data.formats.shard_files import MAX_SAMPLE_BYTES, ShardFiles
from trainkit.errors import DataError, nearest
from trainkit.storage import Location

_NUM_HASHED = 32
_READ_AT_ONCE = 64
_AHEAD = 512  # samples of a shard elsewhere that are fetched ahead
_MOST_SAID = 300  # letters of another library's message


class ShardedDataset(Dataset[Any]):
    """Samples in shards that another tool wrote, read where they lie.

    Map-style: `len(dataset)`, `dataset[index]`, and `dataset.__getitems__(indices)`, which returns a list of samples.
    Picklable; loader workers open the shards themselves.

    Args:
        shown: how the data set is named to people.
        kind: the format, such as MDS.
        block_sizes: samples of each shard.
        kinds: of each column, in the order of the data set, what it holds, in the words of the format.
        columns: those that a sample has; None: all.
        content: a hash of the index.
        files: of the shards, in their order.
    """

    def __init__(
        self,
        shown: str,
        kind: str,
        *,
        block_sizes: Sequence[int],
        kinds: Mapping[str, str],
        columns: Sequence[str] | None,
        content: str,
        files: ShardFiles,
    ) -> None:
        self._files = files
        self.shown, self.kind, self.kinds, self._content = shown, kind, dict(kinds), content
        self._counts = np.asarray(block_sizes, np.int64)
        self._ends = np.cumsum(self._counts)
        if columns is not None:
            for name in columns:
                self.require(name)
        self.columns = tuple(self.kinds if columns is None else columns)
        self.is_whole = columns is None

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Any:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"index {number} of {len(self)} samples")
        shard, row = self.place(number % len(self))
        return self._samples(shard, [row])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Returns the samples of several indices."""
        found: list[Any] = [None] * len(indices)
        for shard, rows, places in self._by_shard(indices):
            for place, sample in zip(places.tolist(), self._samples(shard, rows.tolist()), strict=True):
                found[place] = sample
        return found

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def prefetch(self, indices: NDArray[np.int64]) -> None:
        """Says which samples will be asked for next; returns at once."""
        if not self._is_local():
            for shard, rows, _ in self._by_shard(indices):
                self._prefetch(shard, rows.tolist())

    @property
    def block_sizes(self) -> NDArray[np.int64]:
        """Samples that lie together, those of each shard; they sum to the number of all."""
        return self._counts[self._counts > 0]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the index and of 32 samples, evenly spread; where the data set lies does not matter."""
        digest = hashlib.blake2b(f"{self.kind} {self._content} {self.columns}".encode(), digest_size=16)
        last = max(len(self) - 1, 0)
        for index in sorted({number * last // (_NUM_HASHED - 1) for number in range(_NUM_HASHED)} if len(self) else ()):
            digest.update(self._raw(*self.place(index)))
        return digest.hexdigest()

    def map(self, function: Callable[[Any], Any]) -> "Mapped":
        """Returns the data set of `function(sample)`.

        `random`, `numpy.random` and `torch` are seeded for each sample by its position, so that random transforms do
        not depend on ranks and workers.

        Args:
            function: picklable where loader workers are spawned.
        """
        return Mapped(self, function)

    # -- for recipes -------------------------------------------------------------------------------------------------

    def require(self, name: str, usage: str = "give columns=[...] of these") -> None:
        """Raises DataError where there is no column `name`."""
        if name not in self.kinds:
            raise DataError(
                f"{self.shown} has no column {name!r}, found {self.listed()}; {usage}.{nearest(name, self.kinds)}"
            )

    def listed(self) -> str:
        """Returns the columns and what they hold, for a message."""
        return ", ".join(f"{name!r} ({kind})" for name, kind in self.kinds.items()) or "none"

    def place(self, index: int) -> tuple[int, int]:
        """Returns the shard of a sample from 0 on, and its number there."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - int(self._ends[shard] - self._counts[shard])

    def documents(self, shard: int, name: str) -> Iterator[str]:
        """Yields the text of a column in the samples of a shard; those without a value are left out.

        Raises:
            DataError: where there is no such column, it holds no text, or not in UTF-8.
        """
        self.require(name, "set data.field=NAME")
        if not self.is_text(name):
            raise DataError(
                f"{self.shown}: column {name!r} holds {self.kinds[name]}, not text; set data.field=COLUMN to one that "
                f"does, of {self.listed()}. Token ids are read in your own loop, by trainkit.data.open_dataset"
            )
        count = int(self._counts[shard])
        for first in range(0, count, _READ_AT_ONCE):
            rows = range(first, min(first + _READ_AT_ONCE, count))
            if not self._is_local():
                self._prefetch(shard, [*range(rows.stop, min(rows.stop + _AHEAD, count))])
            for row, sample in zip(rows, self._samples(shard, [*rows]), strict=True):
                text = sample[name]
                if text is not None:
                    yield text if isinstance(text, str) else self._decoded(shard, row, name, text)

    def _decoded(self, shard: int, row: int, name: str, content: bytes) -> str:
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise unreadable(self.shard_name(shard), row, name, "text in UTF-8", error) from None

    def shard_name(self, shard: int) -> str:
        """Returns how a shard is named to people: the path or the URL of its file."""
        return self._files.shown(shard)

    def paths(self) -> list[Path]:
        """Returns the files of the shards, in their order; none where they lie elsewhere."""
        return self._files.paths()

    def names(self) -> list[str]:
        """Returns the files of the shards by their names relative to the folder of the data set, in their order."""
        return [*self._files.names]

    def location(self, shard: int) -> Location:
        """Returns where the file of a shard lies."""
        return self._files.location(shard)

    @abstractmethod
    def is_text(self, name: str) -> bool:
        """Whether a column holds text."""

    @abstractmethod
    def is_picture(self, name: str) -> bool:
        """Whether a column may hold encoded pictures."""

    @abstractmethod
    def is_label(self, name: str) -> bool:
        """Whether a column may hold the number or the name of a class."""

    @abstractmethod
    def cell(self, index: int, name: str) -> bytes:
        """Returns the value of a column as it is stored; of a picture, its file."""

    def is_pixels(self, name: str) -> bool:
        """Whether a column holds pictures as bare pixels, after width, height and mode, and not as files."""
        return False

    def class_names(self, name: str) -> Sequence[str]:
        """Returns the names of the classes of a column of labels, by label; empty where none are stored."""
        return ()

    def keys(self, shard: int) -> list[str]:
        """Returns the names of the samples of a shard."""
        return [f"{row:08d}" for row in range(int(self._counts[shard]))]

    @property
    def num_shards(self) -> int:
        """Shards, empty ones included."""
        return len(self._counts)

    # -- of a format -------------------------------------------------------------------------------------------------

    @abstractmethod
    def _samples(self, shard: int, rows: list[int]) -> list[Any]:
        """Reads samples of a shard, which are there."""

    @abstractmethod
    def _raw(self, shard: int, row: int) -> bytes:
        """Returns the bytes that a sample is stored in."""

    def _is_local(self) -> bool:
        return self._files.is_local

    def _prefetch(self, shard: int, rows: list[int]) -> None:
        """Says which rows of a shard elsewhere will be read next; returns at once."""

    def _by_shard(self, indices: Sequence[int] | NDArray[np.int64]) -> Iterable[tuple[int, Any, Any]]:
        """Yields (shard, rows there, places in `indices`) of samples."""
        numbers = np.asarray(indices, np.int64)
        outside = (numbers < -len(self)) | (numbers >= len(self))
        if outside.any():
            raise IndexError(f"index {numbers[outside][0]} of {len(self)} samples")
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        shards = np.searchsorted(self._ends, numbers, side="right")
        rows = numbers - (self._ends - self._counts)[shards]
        order = np.argsort(shards, kind="stable")
        firsts = np.flatnonzero(np.diff(shards[order], prepend=-1))
        for places in np.split(order, firsts[1:]) if len(order) else ():
            yield int(shards[places[0]]), rows[places], places


class Mapped(Dataset[Any]):
    """Samples of a data set in shards, each given to a function; see `ShardedDataset.map`."""

    def __init__(self, source: ShardedDataset, function: Callable[[Any], Any]) -> None:
        self.source, self.function, self.block_sizes = source, function, source.block_sizes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.source[index])

    def prefetch(self, indices: NDArray[np.int64]) -> None:
        """Says which samples will be asked for next; returns at once."""
        self.source.prefetch(indices)

    @property
    def fingerprint(self) -> str:
        """That of the samples and the name of the function."""
        return f"{self.source.fingerprint} {getattr(self.function, '__qualname__', type(self.function).__qualname__)}"


def checked_offsets(offsets: NDArray[Any], first: int, last: int, shown: str) -> NDArray[Any]:
    """Returns the places at which the samples of a shard begin, and the last one ends, once they are known to be some.

    Args:
        offsets: [samples + 1], in bytes.
        first: the smallest that is possible.
        last: the largest.
        shown: how the shard is named to people.

    Raises:
        DataError: where they descend, lie outside, or a sample is too large.
    """
    sizes = np.diff(offsets.astype(np.int64))
    if (sizes < 0).any():
        raise DataError(f"{shown}: sample {int(np.argmax(sizes < 0))} ends before it begins; copy the shard again")
    if int(offsets[0]) < first or int(offsets[-1]) > last:
        raise DataError(
            f"{shown} has {last:,} bytes, and its samples lie at {int(offsets[0]):,} to {int(offsets[-1]):,}: it is "
            f"cut short or damaged; copy it again"
        )
    if len(sizes) and int(sizes.max()) > MAX_SAMPLE_BYTES:
        raise DataError(
            f"{shown}: sample {int(sizes.argmax())} has {int(sizes.max()):,} bytes, and at most {MAX_SAMPLE_BYTES:,} "
            f"are read; leave it out"
        )
    return offsets


def unreadable(shown: str, row: int, name: str, kind: str, error: Exception) -> DataError:
    """Returns the error for a value that is not what its column says."""
    said = " ".join(str(error).split())[:_MOST_SAID] or type(error).__name__
    return DataError(f"{shown}, sample {row}: column {name!r} is no {kind} ({said}); copy or write the shard again")
