"""PieceFile: a part of a file of a store in a file of the local disk, with checksums of its blocks."""

import os
import struct
from collections.abc import Sequence

import xxhash

from trainkit.storage.location import Range

PIECE_BYTES = 1 << 20
"""Of a file, from a multiple of it on."""
_BLOCK_BYTES = 1 << 16  # each has a checksum of its own, so that a small range is checked by itself
_NUM_BLOCKS = PIECE_BYTES // _BLOCK_BYTES
_HEADER = struct.Struct(f"<8sQ{_NUM_BLOCKS}Q")
_MAGIC = b"tkpiece1"
HEADER_BYTES = _HEADER.size


class Damaged(Exception):
    """A file that does not hold what was written."""


class Gone(Exception):
    """A file that was removed, or replaced by another, since it was opened."""


class PieceFile:
    """A piece, opened to be read by any threads; it is closed with the object.

    A block is checked when it is first read here, and again after anything was done to the file.

    Args:
        path: of the file.
        key: of the piece, which its checksums depend on: under another name it counts as damaged.

    Raises:
        OSError: where it cannot be opened.
    """

    __slots__ = ("_descriptor", "_look", "_seed")

    def __init__(self, path: str, key: str) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY)
        self._seed, self._look = seed_of(key), _Look((-1, -1), 0, ())

    def read(self, ranges: Sequence[Range] | None) -> tuple[list[bytes], float]:
        """Reads ranges of the piece, whose blocks are checked.

        Args:
            ranges: None: all of it.

        Returns:
            The ranges, and when it was last used, in seconds since 1970.

        Raises:
            Damaged: where a block is not what was written.
            Gone: where it is no longer in its folder.
            OSError: where it cannot be read.
        """
        status = os.fstat(self._descriptor)
        if not status.st_nlink:
            raise Gone
        look = self._look
        if look.state != (status.st_mtime_ns, status.st_size):
            look = self._look = self._looked((status.st_mtime_ns, status.st_size))
        if ranges is None:
            ranges = [(0, look.length)]
        return [self._range(look, start, stop) for start, stop in ranges], status.st_mtime

    def mark_used(self) -> None:
        """Sets the time of its last use."""
        look = self._look
        os.utime(self._descriptor)
        status = os.fstat(self._descriptor)
        self._look = _Look((status.st_mtime_ns, status.st_size), look.length, look.digests, look.is_checked)

    def is_gone(self) -> bool:
        """Whether it was removed from its folder, so that only this process keeps its bytes on the disk."""
        return not os.fstat(self._descriptor).st_nlink

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _looked(self, state: tuple[int, int]) -> "_Look":
        header = os.pread(self._descriptor, HEADER_BYTES, 0)
        if len(header) < HEADER_BYTES:
            raise Damaged
        magic, length, *digests = _HEADER.unpack(header)
        if magic != _MAGIC or length > PIECE_BYTES or state[1] != HEADER_BYTES + length:
            raise Damaged
        return _Look(state, length, tuple(digests))

    def _range(self, look: "_Look", start: int, stop: int) -> bytes:
        if stop > look.length:
            raise Damaged
        first, last = start // _BLOCK_BYTES, -(-stop // _BLOCK_BYTES)
        if all(look.is_checked[first:last]):
            content = os.pread(self._descriptor, stop - start, HEADER_BYTES + start)
            if len(content) != stop - start:
                raise Damaged
            return content
        begin, end = first * _BLOCK_BYTES, min(last * _BLOCK_BYTES, look.length)
        content = os.pread(self._descriptor, end - begin, HEADER_BYTES + begin)
        if _digests(self._seed, content) != look.digests[first:last]:
            raise Damaged
        look.is_checked[first:last] = b"\1" * (last - first)
        return content if (begin, end) == (start, stop) else content[start - begin : stop - begin]


class _Look:
    """What was found in a file, in the state that it then had.

    Args:
        state: its time of change and its size.
        length: bytes of the piece.
        digests: of its blocks.
        is_checked: for each block, whether it was found to be what was written.
    """

    __slots__ = ("digests", "is_checked", "length", "state")

    def __init__(
        self, state: tuple[int, int], length: int, digests: tuple[int, ...], is_checked: bytearray | None = None
    ) -> None:
        self.state, self.length, self.digests = state, length, digests
        self.is_checked = bytearray(_NUM_BLOCKS) if is_checked is None else is_checked


def header(key: str, content: bytes) -> bytes:
    """Returns what a file begins with.

    Args:
        key: of the piece.
        content: the piece, at most PIECE_BYTES.
    """
    digests = _digests(seed_of(key), content)
    return _HEADER.pack(_MAGIC, len(content), *digests, *[0] * (_NUM_BLOCKS - len(digests)))


def seed_of(key: str) -> int:
    """Returns a number of 32 bits that depends on the key alone."""
    return int(key[:8], 16)


def _digests(seed: int, content: bytes) -> tuple[int, ...]:
    view = memoryview(content)  # slices of bytes would be copies
    places = range(0, len(content), _BLOCK_BYTES)
    return tuple(xxhash.xxh3_64_intdigest(view[at : at + _BLOCK_BYTES], seed) for at in places)
