"""Pieces: parts of files on the local disk, shared by all processes of a machine, of bounded size."""

import contextlib
import errno
import fcntl
import mmap
import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from trainkit.cache import ENVIRONMENT_VARIABLE
from trainkit.logger import logger
from trainkit.storage.location import Range
from trainkit.storage.piece_file import HEADER_BYTES, PIECE_BYTES, Damaged, Gone, PieceFile, header, seed_of
from trainkit.storage.settings import CACHE

_NUM_LOCKS = 1024
_ATTEMPTS = 3  # to read a piece that others remove and write
_USED_AGAIN_AFTER_S = 10.0  # a piece is marked as used at most so often
_ABANDONED_AFTER_S = 600.0
_KEPT = 0.9  # of the limit, after an eviction
_MOST_OPEN = 256  # pieces: opening one takes longer than reading from it
_OPEN_SHARE = 32  # of the limit: what is open takes space on the disk after it is removed
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
        self._open: OrderedDict[str, PieceFile] = OrderedDict()  # the one read last at the end
        if self.is_off:
            return
        try:
            for name in ("part", "locks"):
                (root / name).mkdir(parents=True, exist_ok=True)
            self._remove_parts()
            used = self._count(0)
            free = os.statvfs(root)
            self.limit = (used + free.f_bavail * free.f_frsize) // 10 if limit is None else limit
            most = min(_MOST_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
            self._most_open = max(1, min(most, self.limit // (_OPEN_SHARE * PIECE_BYTES)))
        except OSError as error:
            self._give_up(error)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes | None:
        """Returns a range of a piece; None where it is not there. One that is damaged is removed, and counted."""
        if stop is None and start == 0:
            found = self._read(key, None)
        else:
            assert stop is not None, "from a place in the piece to another"
            found = self._read(key, [(start, stop)])
        return None if found is None else found[0]

    def read_ranges(self, key: str, ranges: Sequence[Range]) -> list[bytes] | None:
        """Returns ranges of a piece; None where it is not there. One that is damaged is removed, and counted."""
        return self._read(key, ranges)

    def _read(self, key: str, ranges: Sequence[Range] | None) -> list[bytes] | None:
        if self.is_off:
            return None
        try:
            for _ in range(_ATTEMPTS):
                if (file := self._opened(key)) is None:
                    return None
                try:
                    found, used_s = file.read(ranges)
                except Gone:
                    self._close(key, file)  # perhaps another is there now
                    continue
                if time.time() - used_s > _USED_AGAIN_AFTER_S:
                    with contextlib.suppress(OSError):  # read-only: it can be read all the same
                        file.mark_used()
                return found
            return None
        except Damaged:
            self.num_damaged += 1
            logger(__name__).warning(f"{self._path(key)} is damaged (number {self.num_damaged}): it is fetched again")
        except OSError as error:
            logger(__name__).warning(f"{self._path(key)} cannot be read ({error.strerror}): it is fetched again")
        self.remove(key)
        return None

    def has(self, key: str) -> bool:
        """Whether a piece is there, damaged or not."""
        return not self.is_off and os.path.exists(self._path(key))  # noqa: PTH110  # a Path takes longer to make

    def write(self, pieces: Mapping[str, bytes]) -> bool:
        """Keeps pieces, by key; returns whether all are kept. A disk that is full is said once, and then left alone."""
        size = sum(len(content) + HEADER_BYTES for content in pieces.values())
        if self.is_off or size > self.limit:
            return False
        part = ""
        try:
            for key, content in pieces.items():
                path = self._path(key)
                part = f"{self.root}/part/{key}.{os.getpid()}.{threading.get_ident()}"
                _write(part, header(key, content), content)
                _move(part, path)
            if self._count(size) > self.limit:
                self._evict()
        except OSError as error:
            with contextlib.suppress(OSError):
                Path(part).unlink(missing_ok=True)
            self._give_up(error)
            return False
        return True

    def remove(self, key: str) -> None:
        """Removes a piece, if it is there."""
        with contextlib.suppress(OSError):
            Path(self._path(key)).unlink()
        with self._lock:
            self._open.pop(key, None)

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
                number = seed_of(key) % _NUM_LOCKS
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

    def _path(self, key: str) -> str:
        return f"{self.root}/{key[:2]}/{key}"  # a Path takes longer to make than a piece to open

    def _opened(self, key: str) -> PieceFile | None:
        with self._lock:
            if (file := self._open.get(key)) is not None:
                self._open.move_to_end(key)
                return file
        try:
            file = PieceFile(self._path(key), key)
        except FileNotFoundError:
            return None
        with self._lock:
            self._open[key] = file
            while len(self._open) > self._most_open or (len(self._open) > 1 and self._oldest().is_gone()):
                self._open.popitem(last=False)
        return file

    def _oldest(self) -> PieceFile:
        return next(iter(self._open.values()))

    def _close(self, key: str, file: PieceFile) -> None:
        with self._lock:
            if self._open.get(key) is file:
                del self._open[key]

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


def _write(path: str, *contents: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        left = [memoryview(content) for content in contents]
        while left:
            written = os.writev(descriptor, left)
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left:
                left[0] = left[0][written:]
    finally:
        os.close(descriptor)


def _move(part: str, path: str) -> None:
    try:
        Path(part).replace(path)
    except FileNotFoundError:  # the first piece of its folder
        Path(path).parent.mkdir(exist_ok=True)
        Path(part).replace(path)
