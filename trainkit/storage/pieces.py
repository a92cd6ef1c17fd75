"""Pieces: parts of files on the local disk, shared by all processes of a machine, of bounded size."""

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from trainkit.cache import ENVIRONMENT_VARIABLE
from trainkit.logger import logger
from trainkit.storage.settings import CACHE

PIECE_BYTES = 1 << 20
"""Of a file, from a multiple of it on."""
_BLOCK_BYTES = 1 << 16  # each has a checksum of its own, so that a small range is checked by itself
_NUM_BLOCKS = PIECE_BYTES // _BLOCK_BYTES
_HEADER = struct.Struct(f"<8sQ{_NUM_BLOCKS}Q")
_MAGIC = b"tkpiece1"
_NUM_LOCKS = 1024
_USED_AGAIN_AFTER_S = 10.0  # a piece is marked as used at most so often
_ABANDONED_AFTER_S = 600.0
_KEPT = 0.9  # of the limit, after an eviction
_has_warned = mmap.mmap(-1, 1)  # shared with the processes that are forked from this one


class Pieces:
    """Pieces by key; one is there whole or not at all, and checked wherever it is read.

    Args:
        root: the directory.
        limit: bytes that they take at most; None: a tenth of what is free there, with what they take already.
    """

    def __init__(self, root: Path, limit: int | None) -> None:
        self.root, self.is_off, self.num_damaged = root, limit == 0, 0
        self._lock = threading.Lock()
        if self.is_off:
            return
        try:
            for name in ("part", "locks"):
                (root / name).mkdir(parents=True, exist_ok=True)
            self._remove_parts()
            used = self._count(0)
            free = os.statvfs(root)
            self.limit = (used + free.f_bavail * free.f_frsize) // 10 if limit is None else limit
        except OSError as error:
            self._give_up(error)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes | None:
        """Returns a range of a piece; None where it is not there. One that is damaged is removed, and counted."""
        if self.is_off:
            return None
        path = self._path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            content = _checked(descriptor, key, start, stop)
            if content is not None:
                if time.time() - os.fstat(descriptor).st_mtime > _USED_AGAIN_AFTER_S:
                    with contextlib.suppress(OSError):  # read-only: it can be read all the same
                        os.utime(descriptor)
                return content
        except OSError as error:
            logger(__name__).warning(f"{path} cannot be read ({error.strerror}): it is fetched again")
        finally:
            os.close(descriptor)
        self.num_damaged += 1
        logger(__name__).warning(f"{path} is damaged (number {self.num_damaged}): it is fetched again")
        self.remove(key)
        return None

    def has(self, key: str) -> bool:
        """Whether a piece is there, damaged or not."""
        return not self.is_off and self._path(key).exists()

    def write(self, key: str, content: bytes) -> bool:
        """Keeps a piece; returns whether it is kept. A disk that is full is said once, and then left alone."""
        if self.is_off or len(content) + _HEADER.size > self.limit:
            return False
        path = self._path(key)
        part = self.root / "part" / f"{path.name}.{os.getpid()}.{threading.get_ident()}"
        try:
            path.parent.mkdir(exist_ok=True)
            with part.open("wb") as file:
                file.write(_header(key, content))
                file.write(content)
            part.replace(path)
            used = self._count(len(content) + _HEADER.size)
            if used > self.limit:
                self._evict()
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            self._give_up(error)
            return False
        return True

    def remove(self, key: str) -> None:
        """Removes a piece, if it is there."""
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    @contextlib.contextmanager
    def claim(self, keys: Iterable[str]) -> Iterator[set[str]]:
        """Context manager that claims those of the pieces that no other process or thread fetches just now.

        Yields:
            Their keys; the others will be there soon.
        """
        held: dict[int, int] = {}
        mine: set[str] = set()
        busy: set[int] = set()
        try:
            for key in keys:
                number = int(key[:8], 16) % _NUM_LOCKS
                if number not in held and number not in busy:
                    descriptor = self._locked(number)
                    if descriptor is None:
                        busy.add(number)
                    else:
                        held[number] = descriptor
                if number in held:
                    mine.add(key)
            yield mine
        finally:
            for descriptor in held.values():
                if descriptor >= 0:
                    os.close(descriptor)

    def _locked(self, number: int) -> int | None:
        """Returns the descriptor of a lock, or -1 where files cannot be locked; None: another holds it."""
        if self.is_off:
            return -1
        try:
            descriptor = os.open(self.root / "locks" / f"{number}", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return -1
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            return None if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else -1
        return descriptor

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / key

    def _count(self, num_bytes: int, exactly: bool = False) -> int:
        """Adds to the bytes that all pieces take, or sets them; returns the sum."""
        descriptor = os.open(self.root / "used", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            before = os.pread(descriptor, 8, 0)
            used = num_bytes
            if not exactly:
                used += int.from_bytes(before, "little") if len(before) == 8 else sum(s for _, s, _ in self._all())
            os.pwrite(descriptor, used.to_bytes(8, "little"), 0)
        finally:
            os.close(descriptor)
        return used

    def _all(self) -> Iterator[tuple[float, int, str]]:
        """Yields of each piece (time of its last use, bytes, path)."""
        for directory in os.scandir(self.root):
            if len(directory.name) == 2:
                for entry in os.scandir(directory):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat()
                        yield status.st_mtime, status.st_size, entry.path

    def _evict(self) -> None:
        """Removes the pieces that were not used for longest; one process does it, and the others go on."""
        descriptor = os.open(self.root / "locks" / "evict", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            pieces = sorted(self._all())
            used = sum(num_bytes for _, num_bytes, _ in pieces)
            for _, num_bytes, path in pieces:
                if used <= _KEPT * self.limit:
                    break
                Path(path).unlink(missing_ok=True)
                used -= num_bytes
            self._count(used, exactly=True)
            self._remove_parts()
        finally:
            os.close(descriptor)

    def _remove_parts(self) -> None:
        """Removes what processes that were killed had half written."""
        for entry in os.scandir(self.root / "part"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - entry.stat().st_mtime > _ABANDONED_AFTER_S:
                    Path(entry.path).unlink()

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            self.is_off = True
            if _has_warned[0] or os.environ.get("LOCAL_RANK", "0") != "0":
                return
            _has_warned[0] = 1
        logger(__name__).warning(
            f"the cache {self.root} cannot be written ({error.strerror}): going on without it, which asks the store "
            f"again for each epoch; free some space there, or set {ENVIRONMENT_VARIABLE}=DIRECTORY or {CACHE}=NUMBER"
        )


def _header(key: str, content: bytes) -> bytes:
    starts = range(0, PIECE_BYTES, _BLOCK_BYTES)
    return _HEADER.pack(_MAGIC, len(content), *(_digest(key, content[at : at + _BLOCK_BYTES]) for at in starts))


def _digest(key: str, block: bytes) -> int:
    # With the key in it, a piece under another name counts as damaged.
    return xxhash.xxh3_64_intdigest(block, int(key[:8], 16))


def _checked(descriptor: int, key: str, start: int, stop: int | None) -> bytes | None:
    """Reads the blocks of a range; None where they are not those that were written."""
    header = os.pread(descriptor, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return None
    magic, length, *digests = _HEADER.unpack(header)
    if magic != _MAGIC or length > PIECE_BYTES or (stop is not None and stop > length):
        return None
    last = length if stop is None else stop
    first = start // _BLOCK_BYTES * _BLOCK_BYTES
    end = min(-(-last // _BLOCK_BYTES) * _BLOCK_BYTES, length)
    content = os.pread(descriptor, end - first, _HEADER.size + first)
    for at in range(first, end, _BLOCK_BYTES):
        if _digest(key, content[at - first : min(at + _BLOCK_BYTES, end) - first]) != digests[at // _BLOCK_BYTES]:
            return None
    return content[start - first : last - first]
