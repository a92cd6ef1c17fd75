"""Chunks of litdata: where the items of a file are, in each of the forms that it writes.

Plain: the number of items, where each begins and the last one ends (all uint32, little endian), and the items, which
may each be compressed. Framed: `LDFZ01`, and items that are compressed in groups. Rows: a header without items, an
Arrow IPC file of rows, its length (uint32), and `LDARW01`.
"""

import io
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainkit.data.formats.recent import Recent
from trainkit.data.formats.shard_files import MAX_SAMPLE_BYTES, OpenShard
from trainkit.data.formats.sharded import checked_offsets
from trainkit.errors import DataError

_FRAMED, _ROWS, _ZSTD = b"LDFZ01\0\0", b"LDARW01\0", b"\x28\xb5\x2f\xfd"
_FRAMES_KEPT, _BATCHES_KEPT = 4, 4
_BLOCK_BYTES = 1 << 18
_FRAME = np.dtype([("first", "<u4"), ("count", "<u4"), ("start", "<u8"), ("packed", "<u4"), ("size", "<u4")])


class Chunk(Protocol):
    """A file of items."""

    def items(self, rows: list[int]) -> list[bytes]:
        """Returns the bytes of items."""

    def ranges(self, rows: list[int]) -> list[tuple[int, int]]:
        """Returns the bytes of the file that hold items."""


@dataclass(frozen=True)
class Plain:
    """A plain chunk.

    Args:
        shard: the file.
        offsets: where each item begins and the last one ends, [items + 1].
        is_packed: whether each item is compressed by zstd.
        shown: how the file is named to people.
    """

    shard: OpenShard
    offsets: NDArray[Any]
    is_packed: bool
    shown: str

    def items(self, rows: list[int]) -> list[bytes]:
        """Returns the bytes of items."""
        found = self.shard.read(self.ranges(rows))
        if not self.is_packed:
            return found
        return [_inflated(content, self.shown, row) for row, content in zip(rows, found, strict=True)]

    def ranges(self, rows: list[int]) -> list[tuple[int, int]]:
        """Returns the bytes of the file that hold items."""
        return [(int(self.offsets[row]), int(self.offsets[row + 1])) for row in rows]


@dataclass(frozen=True)
class Framed:
    """A chunk whose items are compressed in groups.

    Args:
        shard: the file.
        offsets: where each item begins and the last one ends in the decompressed items, [items + 1].
        frames: of the groups.
        shown: how the file is named to people.
    """

    shard: OpenShard
    offsets: NDArray[Any]
    frames: NDArray[Any]
    shown: str
    _kept: Recent[int, bytes] = field(default_factory=lambda: Recent(_FRAMES_KEPT))

    def items(self, rows: list[int]) -> list[bytes]:
        """Returns the bytes of items."""
        found = []
        for row in rows:
            number = self._frame(row)
            content, first = self._kept.get(number, self._inflated), int(self.offsets[self.frames["first"][number]])
            found.append(content[int(self.offsets[row]) - first : int(self.offsets[row + 1]) - first])
        return found

    def ranges(self, rows: list[int]) -> list[tuple[int, int]]:
        """Returns the bytes of the file that hold items."""
        frames = [self.frames[number] for number in dict.fromkeys(map(self._frame, rows))]
        return [(int(frame["start"]), int(frame["start"]) + int(frame["packed"])) for frame in frames]

    def _frame(self, row: int) -> int:
        return int(np.searchsorted(self.frames["first"], row, side="right")) - 1

    def _inflated(self, number: int) -> bytes:
        import pyarrow

        frame = self.frames[number]
        (packed,) = self.shard.read([(int(frame["start"]), int(frame["start"]) + int(frame["packed"]))])
        try:
            content: bytes = pyarrow.decompress(packed, int(frame["size"]), "zstd", asbytes=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.shown}: group {number} cannot be decompressed ({error}); copy it again") from None
        return content


@dataclass(frozen=True)
class Rows:
    """A chunk of rows in an Arrow IPC file.

    Args:
        reader: of the file.
        starts: the first row of each record batch, and the end of the last one.
        shown: how the file is named to people.
    """

    reader: Any
    starts: NDArray[np.int64]
    shown: str
    _kept: Recent[int, Any] = field(default_factory=lambda: Recent(_BATCHES_KEPT))

    def rows(self, rows: list[int]) -> list[dict[str, Any]]:
        """Returns rows, as dicts by column."""
        found = []
        for row in rows:
            number = int(np.searchsorted(self.starts, row, side="right")) - 1
            batch = self._kept.get(number, self._batch)
            found += batch.slice(row - int(self.starts[number]), 1).to_pylist()
        return found

    def _batch(self, number: int) -> Any:
        import pyarrow

        try:
            batch = self.reader.get_batch(number)
            batch.validate(full=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.shown}: rows cannot be read ({error}); copy it again") from None
        return batch


def open_chunk(shard: OpenShard, num_items: int, is_packed: bool, shown: str) -> Plain | Framed | Rows:
    """Finds the items of a file.

    Args:
        shard: the file.
        num_items: that its index says it holds.
        is_packed: whether each item of a plain chunk is compressed.
        shown: how the file is named to people.

    Raises:
        DataError: where it is damaged, or holds another number of items.
    """
    first = 4 * (num_items + 2)
    if shard.num_bytes < first:
        raise DataError(f"{shown} has {shard.num_bytes:,} bytes, too few for its items; copy it again")
    start, end = shard.read([(0, 8), (shard.num_bytes - 8, shard.num_bytes)])
    if start == _FRAMED:
        return _framed(shard, num_items, shown)
    table = shard.array("<u4", num_items + 2, 0)
    if table[0] != num_items:
        raise DataError(f"{shown} holds {table[0]:,} items, and its index says {num_items:,}; copy both again")
    if end == _ROWS and shard.num_bytes > first + 12:
        return _rows(shard, num_items, shown)
    return Plain(shard, checked_offsets(table[1:], first, shard.num_bytes, shown), is_packed, shown)


def _framed(shard: OpenShard, num_items: int, shown: str) -> Framed:
    head = shard.array("<u4", 6, 0) if shard.num_bytes >= 24 else np.zeros(6, np.uint32)
    count, num_frames = int(head[3]), int(head[5])
    table = 24 + 4 * (count + 1)
    payload = table + _FRAME.itemsize * num_frames
    if int(head[2]) != 1 or count != num_items or not num_frames or payload > shard.num_bytes:  # version 1, no flags
        raise DataError(
            f"{shown} holds {count:,} items in {num_frames:,} groups: it is damaged or newer; copy it again"
        )
    offsets = shard.array("<u4", count + 1, 24)
    frames = np.frombuffer(shard.read([(table, payload)])[0], _FRAME)
    ends = frames["start"].astype(np.float64) + frames["packed"]  # of uint64, which could wrap
    bounds = np.append(frames["first"], count).astype(np.int64)
    sizes = np.diff(offsets[np.clip(bounds, 0, count)].astype(np.int64))
    is_whole = bounds[0] == 0 and (np.diff(bounds) > 0).all() and (frames["size"] == sizes).all()
    if not is_whole or (ends > shard.num_bytes).any() or (frames["start"] < payload).any():
        raise DataError(f"{shown}: its groups of items do not fit into it; copy it again")
    if int(frames["size"].max()) > MAX_SAMPLE_BYTES:
        raise DataError(f"{shown}: a group of items has more than {MAX_SAMPLE_BYTES:,} bytes; write smaller ones")
    return Framed(shard, checked_offsets(offsets, 0, int(offsets[-1]), shown), frames, shown)


def _rows(shard: OpenShard, num_items: int, shown: str) -> Rows:
    import pyarrow

    stop = shard.num_bytes - 12
    start = stop - int(shard.array("<u4", 1, stop)[0])
    try:
        if start < 0:
            raise pyarrow.ArrowInvalid("it is longer than the file")
        if shard.content is not None:
            source = pyarrow.py_buffer(memoryview(shard.content)[start:stop])
        else:
            source = pyarrow.py_buffer(shard.location.read(start, stop))
        reader = pyarrow.ipc.open_file(source)
        counts = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{shown}: its rows are no Arrow file ({error}); copy it again") from None
    if sum(counts) != num_items:
        raise DataError(f"{shown} holds {sum(counts):,} rows, and its index says {num_items:,}; copy both again")
    return Rows(reader, np.cumsum([0, *counts]), shown)


def _inflated(content: bytes, shown: str, row: int) -> bytes:
    import pyarrow

    # It writes tuples and lists as they are, and its index says that they are compressed.
    if not content.startswith(_ZSTD):
        return content
    parts, left = [], MAX_SAMPLE_BYTES
    try:
        with pyarrow.CompressedInputStream(pyarrow.PythonFile(io.BytesIO(content), "r"), "zstd") as stream:
            while left >= 0 and (part := stream.read(_BLOCK_BYTES)):  # it makes room for all that is asked for
                parts.append(part)
                left -= len(part)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{shown}, sample {row} cannot be decompressed ({error}); copy it again") from None
    if left < 0:
        raise DataError(f"{shown}, sample {row} has more than {MAX_SAMPLE_BYTES:,} bytes; leave it out")
    return b"".join(parts)
