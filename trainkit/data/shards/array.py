"""ShardedArray: items that lie in shards, read at random by range, mapped where they are on this machine."""

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from trainkit.data.shards.layout import PIECE_BYTES, Layout, own_sum
from trainkit.errors import DataError, StorageError
from trainkit.storage import Location

_MOST_MAPPED = 256  # shards: each takes a file descriptor while it is opened, and address space
_MOST_SUMS = 4096  # shards whose checksums a process keeps: 32 MB for shards of 64 MB


T = TypeVar("T")
Span = tuple[int, int, int]
"""A shard, and the bytes of it from the second to before the third."""


class ShardedArray:
    """Reads spans of items. Picklable, and threads may share it; nothing is opened before it is read.

    What is read from afar is checked, piece by piece, against the checksums beside the shards.

    Args:
        folder: that the shards are in.
        layout: how they lie there.
    """

    def __init__(self, folder: Location, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._local = folder.local_path()
        self._mapped: dict[int, NDArray[Any]] = {}
        self._sums: dict[int, NDArray[np.uint64]] = {}
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
        spans = zip(starts.tolist(), lengths.tolist(), strict=True)
        if self._local is not None:
            return [self._span(a, n) for a, n in spans]
        by_span = [[*self._parts(a, n)] for a, n in spans]
        pieces = self._from_afar([part for parts in by_span for part in parts])
        return [self._joined([self.layout.read(pieces[part]) for part in parts]) for parts in by_span]

    def rows(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Reads items, [N, *shape], in a new array."""
        found = np.empty((len(indices), *self.layout.shape), self.layout.dtype)
        if self._local is not None:
            places, inside = np.divmod(indices, self.layout.items_per_shard)
            for shard in np.unique(places).tolist():
                of_shard = places == shard
                found[of_shard] = self._shard(shard)[inside[of_shard]]
        else:
            for place, item in enumerate(self.read(indices, np.ones(len(indices), np.int64))):
                found[place] = item[0]
        return found

    def everything(self) -> NDArray[Any]:
        """Reads all items; a view where they are in one file of this machine."""
        return self.read(np.zeros(1, np.int64), np.array([len(self)]))[0]

    def prefetch(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """Says which spans will be read next; returns at once."""
        if self._local is not None:
            return
        spans = [part for a, n in zip(starts.tolist(), lengths.tolist(), strict=True) for part in self._parts(a, n)]
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for shard, start, stop in spans:
            by_shard.setdefault(shard, []).append(self._around(shard, start, stop))
        for shard, ranges in by_shard.items():
            self.folder.child(self.layout.file(shard)).prefetch([*dict.fromkeys(ranges)])

    def __reduce__(self) -> tuple[type["ShardedArray"], tuple[Location, Layout]]:
        return ShardedArray, (self.folder, self.layout)

    def _parts(self, start: int, length: int) -> Iterator[Span]:
        per_shard, size = self.layout.items_per_shard, self.layout.item_bytes
        stop = start + length
        while start < stop:
            shard, inside = divmod(start, per_shard)
            taken = min(stop - start, per_shard - inside)
            yield shard, inside * size, (inside + taken) * size
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
        size = self.layout.item_bytes
        return self._joined([self._shard(n)[a // size : b // size] for n, a, b in self._parts(start, length)])

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

    def _around(self, shard: int, start: int, stop: int) -> tuple[int, int]:
        """The whole pieces that a range of a shard lies in."""
        return start // PIECE_BYTES * PIECE_BYTES, min(
            -(-stop // PIECE_BYTES) * PIECE_BYTES, self.layout.bytes_of(shard)
        )

    def _from_afar(self, spans: Sequence[Span]) -> dict[Span, memoryview]:
        by_shard: dict[int, list[Span]] = {}
        for span in spans:
            by_shard.setdefault(span[0], []).append(span)
        found = {}
        for shard, of_shard in by_shard.items():
            ranges = _merged(self._around(*span) for span in of_shard)
            file = self.folder.child(self.layout.file(shard))
            contents = twice(partial(self._checked, file, shard, ranges), file, ranges)
            begins = [start for start, _ in ranges]
            for span in of_shard:
                number = bisect_right(begins, span[1]) - 1
                start = begins[number]
                found[span] = memoryview(contents[number])[span[1] - start : span[2] - start]
        return found

    def _checked(self, file: Location, shard: int, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        contents = file.read_ranges(ranges)
        for (start, stop), content in zip(ranges, contents, strict=True):
            self._check(shard, start, stop, content)
        return contents

    def _check(self, shard: int, start: int, stop: int, content: bytes) -> None:
        name = self.folder.child(self.layout.file(shard)).shown
        if len(content) != stop - start:
            raise StorageError(
                f"{name}: asked for {stop - start:,} bytes from {start:,} on, the store gave {len(content):,}: copy "
                f"the shard there again, or use a store that answers ranges"
            )
        sums, view = self._sums_of(shard), memoryview(content)
        for place in range(0, len(content), PIECE_BYTES):
            piece = view[place : place + PIECE_BYTES]
            if xxhash.xxh3_64_intdigest(piece) != int(sums[(start + place) // PIECE_BYTES]):
                raise damaged(name, start + place, start + place + len(piece))

    def _sums_of(self, shard: int) -> NDArray[np.uint64]:
        found = self._sums.get(shard)
        if found is None:
            where, bounds = self.folder.child(self.layout.sums_file), self.layout.sums_range(shard)
            found = twice(partial(_checked_sums, where, *bounds), where, [bounds])
            with self._lock:
                while len(self._sums) >= _MOST_SUMS:
                    self._sums.pop(next(iter(self._sums)))
                self._sums[shard] = found
        return found


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


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Joins ranges that touch or overlap, in ascending order."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], stop)
        else:
            merged.append((start, stop))
    return merged
