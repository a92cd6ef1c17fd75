"""ShardedArray: items that lie in shards, read at random by range, mapped where they are on this machine."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from trainkit.data.shards.lately import Lately
from trainkit.data.shards.layout import PIECE_BYTES, Layout, own_sum
from trainkit.errors import DataError, StorageError
from trainkit.storage import Check, Location

_MOST_MAPPED = 256  # shards: each takes a file descriptor while it is opened, and address space
_MOST_SUMS = 4096  # shards whose checksums a process keeps: 32 MB for shards of 64 MB
_MOST_FILES = 1024  # shards whose size and version a process keeps, so that a store is asked for them once


T = TypeVar("T")
Parts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Of spans: their shards, and the first byte and the one after the last in these."""


class ShardedArray:
    """Reads spans of items. Picklable, and threads may share it; nothing is opened before it is read.

    What comes from afar is checked, piece by piece, against the checksums beside the shards.

    Args:
        folder: that the shards are in.
        layout: how they lie there.
    """

    def __init__(self, folder: Location, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._local = folder.local_path()
        self._mapped: dict[int, NDArray[Any]] = {}
        self._sums: dict[int, NDArray[np.uint64]] = {}
        self._sums_coming: dict[tuple[int, int], Future[NDArray[np.uint64]]] = {}
        self._files: dict[int, Location] = {}
        self._pieces_per_shard = -(-layout.items_per_shard * layout.item_bytes // PIECE_BYTES)
        self._announced = Lately()
        self._sums_file = folder.child(layout.sums_file)  # one, so that a store is asked for its size once
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.layout.num_items

    def read(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Reads spans of items, all at once.

        Args:
            starts: the first item of each span.
            lengths: items in each.

        Returns:
            [length, *shape] each; views of the files where they are on this machine.

        Raises:
            StorageError: where a shard cannot be read, or what is read does not have its checksum.
        """
        if self._local is not None:
            return [self._span(a, n) for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
        ends = np.cumsum(lengths)
        items = self._from_afar(self._parts(starts, lengths))
        return [items[stop - n : stop] for stop, n in zip(ends.tolist(), lengths.tolist(), strict=True)]

    def rows(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Reads items, [N, *shape], in a new array."""
        if self._local is None:
            return self._from_afar(self._parts(indices, np.ones(len(indices), np.int64)))
        found = np.empty((len(indices), *self.layout.shape), self.layout.dtype)
        places, inside = np.divmod(indices, self.layout.items_per_shard)
        for shard in np.unique(places).tolist():
            of_shard = places == shard
            found[of_shard] = self._shard(shard)[inside[of_shard]]
        return found

    def everything(self) -> NDArray[Any]:
        """Reads all items; a view where they are in one file of this machine."""
        return self.read(np.zeros(1, np.int64), np.array([len(self)]))[0]

    def prefetch(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
        """Says which spans will be read next; returns at once.

        Returns:
            Bytes that are still to come, for all that this process reads; 0 where all was announced a moment ago.
        """
        if self._local is not None:
            return 0
        shards, begins, ends = self._parts(starts, lengths)
        begins, ends = begins // PIECE_BYTES, -(-ends // PIECE_BYTES)  # what must come to check them
        is_new = self._announced.add(shards * self._pieces_per_shard + begins) | (ends - begins > 1)
        shards, begins, ends = shards[is_new], begins[is_new], ends[is_new]
        coming = 0
        for shard, places in _by_shard(shards):
            ranges = dict.fromkeys(zip(begins[places].tolist(), ends[places].tolist(), strict=True))
            size = self.layout.bytes_of(shard)
            around = [(a * PIECE_BYTES, min(b * PIECE_BYTES, size)) for a, b in ranges]
            coming = self._file(shard).prefetch(around, partial(self._check_of, shard))
        return coming

    def __reduce__(self) -> tuple[type["ShardedArray"], tuple[Location, Layout]]:
        return ShardedArray, (self.folder, self.layout)

    def _parts(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Parts:
        per_shard, size = self.layout.items_per_shard, self.layout.item_bytes
        shards, inside = np.divmod(starts, per_shard)
        if lengths.all() and (inside + lengths <= per_shard).all():
            return shards, inside * size, (inside + lengths) * size
        each = [part for a, n in zip(starts.tolist(), lengths.tolist(), strict=True) for part in self._parts_of(a, n)]
        shards, begins, ends = np.array(each, np.int64).reshape(-1, 3).T
        return shards, begins * size, ends * size

    def _parts_of(self, start: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yields the shards that a span lies in, and its first item and the one after the last in each."""
        stop = start + length
        while start < stop:
            shard, inside = divmod(start, self.layout.items_per_shard)
            taken = min(stop - start, self.layout.items_per_shard - inside)
            yield shard, inside, inside + taken
            start += taken

    def _joined(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.empty((0, *self.layout.shape), self.layout.dtype), *parts])

    # -- on this machine ---------------------------------------------------------------------------------------------

    def _span(self, start: int, length: int) -> NDArray[Any]:
        per_shard = self.layout.items_per_shard
        shard, inside = divmod(start, per_shard)
        if 0 < length <= per_shard - inside:
            return self._shard(shard)[inside : inside + length]
        return self._joined([self._shard(n)[a:b] for n, a, b in self._parts_of(start, length)])

    def _shard(self, shard: int) -> NDArray[Any]:
        found = self._mapped.get(shard)
        return self._map(shard) if found is None else found

    def _map(self, shard: int) -> NDArray[Any]:
        assert self._local is not None
        items = np.asarray(np.memmap(self._local / self.layout.file(shard), self.layout.dtype, mode="r"))
        with self._lock:
            while len(self._mapped) >= _MOST_MAPPED:
                del self._mapped[next(iter(self._mapped))]
            self._mapped[shard] = items.reshape(-1, *self.layout.shape)
            return self._mapped[shard]

    # -- from afar ---------------------------------------------------------------------------------------------------

    def _from_afar(self, parts: Parts) -> NDArray[Any]:
        """Reads parts, those of each shard at once, and joins them."""
        shards, begins, ends = parts
        contents = [b""] * len(shards)
        for shard, places in _by_shard(shards):
            file, check = self._file(shard), self._check_of(shard)
            ranges = list(zip(begins[places].tolist(), ends[places].tolist(), strict=True))
            found = twice(partial(file.read_ranges, ranges, check), file, ranges)
            for place, content in zip(places.tolist(), found, strict=True):
                contents[place] = content
        return self.layout.read(bytearray().join(contents))  # bytes could not be written to

    def _file(self, shard: int) -> Location:
        found = self._files.get(shard)
        if found is None:
            with self._lock:
                while len(self._files) >= _MOST_FILES:
                    del self._files[next(iter(self._files))]
                found = self._files[shard] = self.folder.child(self.layout.file(shard))
        return found

    def _check_of(self, shard: int) -> Check:
        # With the checksums in it: what has come is checked by a thread that others wait for, which reads nothing more.
        return partial(self._check, shard, self._sums_of(shard))

    def _check(self, shard: int, sums: NDArray[np.uint64], start: int, content: bytes) -> None:
        view = memoryview(content)
        for place in range(0, len(content), PIECE_BYTES):
            piece = view[place : place + PIECE_BYTES]
            if xxhash.xxh3_64_intdigest(piece) != int(sums[(start + place) // PIECE_BYTES]):
                raise damaged(self._file(shard).shown, start + place, start + place + len(piece))

    def _sums_of(self, shard: int) -> NDArray[np.uint64]:
        found = self._sums.get(shard)
        if found is not None:
            return found
        key = os.getpid(), shard  # a fork begins with none of its parent's threads
        with self._lock:
            asked = self._sums_coming.get(key)
            if asked is None:
                future = self._sums_coming[key] = Future()
        if asked is not None:
            return asked.result()  # two threads would each forget what the other one has read again
        try:
            where, bounds = self._sums_file, self.layout.sums_range(shard)
            future.set_result(twice(partial(_checked_sums, where, *bounds), where, [bounds]))
            with self._lock:
                while len(self._sums) >= _MOST_SUMS:
                    self._sums.pop(next(iter(self._sums)))
                self._sums[shard] = future.result()
        except BaseException as error:  # whoever waits gets it, too
            future.set_exception(error)
        finally:
            with self._lock:
                del self._sums_coming[key]
        return future.result()


def _checked_sums(where: Location, start: int, stop: int) -> NDArray[np.uint64]:
    content = where.read(start, stop)
    found: NDArray[np.uint64] = np.frombuffer(content, "<u8")
    if len(content) != stop - start or found[-1] != own_sum(found[:-1]):
        raise damaged(where.shown, start, stop)
    return found


def twice(read: Callable[[], T], where: Location, ranges: Sequence[tuple[int, int]]) -> T:
    """Reads once more what is damaged: on its way perhaps, so that it is whole when the store is asked again.

    Args:
        read: reads and checks.
        where: the file.
        ranges: of it, that are read.
    """
    try:
        return read()
    except DataError:
        where.forget(ranges)
        return read()


def damaged(name: str, start: int, stop: int) -> StorageError:
    """The error for bytes that do not have their checksum."""
    return StorageError(
        f"{name} is damaged: bytes {start:,} to {stop:,} do not have their checksum; copy the file again, or make the "
        f"shards again with trainkit data prepare"
    )


def _by_shard(shards: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yields each shard, with the places at which it is."""
    order = np.argsort(shards, kind="stable")
    ordered = shards[order]
    borders = [0, *(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist(), len(order)]
    for first, last in pairwise(borders if len(order) else ()):
        yield int(ordered[first]), order[first:last]
