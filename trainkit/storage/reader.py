"""Reader: reads files of stores in pieces, from the local disk where they are kept there, and ahead of their use."""

import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from trainkit.cache import cache_root
from trainkit.errors import StorageError
from trainkit.storage.crew import Crew
from trainkit.storage.location import Range
from trainkit.storage.persist import persist
from trainkit.storage.pieces import PIECE_BYTES, Pieces
from trainkit.storage.settings import StorageSettings
from trainkit.storage.store import Info, PassingError, Store
from trainkit.storage.stores import store_of

_REQUEST_PIECES = 4
"""Pieces that one request asks for at most, where they lie together."""
_READING, _AHEAD = 16, 8
"""Threads that fetch what is waited for, and what will be."""
_MOST_AHEAD = 1024
"""Pieces that are asked for ahead of their use at a time; more are fetched when they are read."""
_MEMORY_PIECES = 64
"""Pieces that are kept in memory where the disk keeps none."""
_OTHERS_WITHIN_S = 30.0
"""Seconds for which a piece that another process fetches is waited for."""
_POLL_S = 0.02

Found = dict[int, bytes]


@dataclass(frozen=True)
class File:
    """A file as a store has it at one time.

    Args:
        url: with no credentials in it.
        info: its size and version.
    """

    url: str
    info: Info

    def key(self, number: int) -> str:
        """Names a piece: of another version of the file it is another."""
        text = f"{self.url}\n{self.info.size}\n{self.info.version}\n{PIECE_BYTES}\n{number}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def pieces(self, start: int, stop: int) -> range:
        """Returns the numbers of the pieces that a range is in."""
        return range(start // PIECE_BYTES, -(-stop // PIECE_BYTES)) if stop > start else range(0)

    def bounds(self, number: int) -> Range:
        """Returns the range that a piece is."""
        return number * PIECE_BYTES, min((number + 1) * PIECE_BYTES, self.info.size)


class Reader:
    """What a process reads with: its connections, threads and the pieces on the disk. Threads may share it.

    Args:
        settings: of this machine.
    """

    def __init__(self, settings: StorageSettings) -> None:
        limit = None if settings.cache_gb is None else int(settings.cache_gb * 1e9)
        self.settings, self.num_requests = settings, 0
        self.pieces = Pieces(cache_root() / "pieces", limit)
        self._reading, self._ahead = Crew(_READING, "trainkit-read"), Crew(_AHEAD, "trainkit-ahead")
        self._lock = threading.Lock()
        self._coming: dict[str, Future[Found]] = {}
        self._memory: OrderedDict[str, bytes] = OrderedDict()

    def ask(self, url: str, request: Callable[[Store], Any]) -> Any:
        """Asks the store of a URL until it answers; see `persist`."""
        return persist(url, self.settings, lambda _: request(store_of(url, self.settings)))

    def all(self, requests: Sequence[Callable[[], Any]]) -> list[Any]:
        """Makes requests at once, as many as there are threads; returns their answers in order."""
        return [future.result() for future in [self._reading.do(request) for request in requests]]

    def read_ranges(self, file: File, ranges: Sequence[Range]) -> list[bytes]:
        """Reads ranges that lie in the file."""
        numbers = sorted({number for bounds in ranges for number in file.pieces(*bounds)})
        if len(numbers) == 1 and len(ranges) == 1:  # the usual case of a small read: only its blocks are checked
            first, (start, stop) = numbers[0] * PIECE_BYTES, ranges[0]
            kept = self._kept(file.key(numbers[0]), start - first, stop - first)
            if kept is not None:
                return [kept]
        found: Found = {}
        missing = []
        for number in numbers:
            kept = self._kept(file.key(number))
            if kept is None:
                missing.append(number)
            else:
                found[number] = kept
        for future in self._fetching(file, missing, self._reading):
            try:
                found |= future.result()
            except StorageError:
                self._drop(future)  # the next read asks again
                raise
        return [_cut(file, found, start, stop) for start, stop in ranges]

    def prefetch(self, file: File, ranges: Sequence[Range]) -> None:
        """Fetches ranges in the background, in their order; an error is raised where they are read."""
        numbers = dict.fromkeys(number for bounds in ranges for number in file.pieces(*bounds))
        with self._lock:
            left = max(_MOST_AHEAD - len(self._coming), 0)
        wanted = [number for number in numbers if not self._is_near(file.key(number))][:left]
        self._fetching(file, wanted, self._ahead)

    def soon(self, work: Callable[[], None]) -> None:
        """Does work in the background that a read would do again, and whose error it would raise."""
        self._ahead.do(work)

    def forget(self, file: File, ranges: Sequence[Range]) -> None:
        """Drops pieces, which are then fetched again."""
        for number in {number for bounds in ranges for number in file.pieces(*bounds)}:
            self.pieces.remove(file.key(number))
            with self._lock:
                self._memory.pop(file.key(number), None)

    def _kept(self, key: str, start: int = 0, stop: int | None = None) -> bytes | None:
        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
                return self._memory[key][start:stop]
        return self.pieces.read(key, start, stop)

    def _is_near(self, key: str) -> bool:
        with self._lock:
            if key in self._memory or key in self._coming:
                return True
        return self.pieces.has(key)

    def _fetching(self, file: File, numbers: Sequence[int], crew: Crew) -> list["Future[Found]"]:
        """Returns what fetches pieces: what does so already, and new requests for the rest."""
        futures: dict[int, Future[Found]] = {}
        with self._lock:
            new = []
            for number in numbers:
                key = file.key(number)
                coming = self._coming.get(key)
                if coming is None:
                    new.append(number)
                    continue
                futures[id(coming)] = coming
            for run in _runs(new):
                future = crew.do(partial(self._bring, file, run, crew is self._reading))
                self._coming |= {file.key(number): future for number in run}  # before it can be done: it takes the lock
                futures[id(future)] = future
        return [*futures.values()]

    def _drop(self, future: "Future[Found]") -> None:
        with self._lock:
            for key in [key for key, coming in self._coming.items() if coming is future]:
                del self._coming[key]

    def _bring(self, file: File, numbers: Sequence[int], is_awaited: bool) -> Found:
        """Fetches pieces, and is done with them before anyone gets them, who may forget them at once."""
        keys = {number: file.key(number) for number in numbers}
        has_failed = True
        unkept: dict[str, bytes] = {}
        try:
            found = self._fetch(file, numbers)
            has_failed = False
            unkept = {keys[number]: piece for number, piece in found.items() if not self.pieces.has(keys[number])}
        finally:
            with self._lock:
                self._memory |= unkept
                while len(self._memory) > _MEMORY_PIECES:
                    self._memory.popitem(last=False)
                if is_awaited or not has_failed:  # else the error is raised where the pieces are read
                    for key in keys.values():
                        self._coming.pop(key, None)
        return found

    def _fetch(self, file: File, numbers: Sequence[int]) -> Found:
        """Fetches pieces that lie together, each by one process of the machine."""
        found: Found = {}
        left, until = list(numbers), time.monotonic() + _OTHERS_WITHIN_S
        while left:
            keys = {file.key(number): number for number in left}
            with self.pieces.claim(keys) as mine:
                claimed = [number for number in left if file.key(number) in mine]
                if time.monotonic() > until:
                    claimed = left
                for number in claimed:  # another process may have fetched it since
                    if (kept := self._kept(file.key(number))) is not None:
                        found[number] = kept
                for run in _runs([number for number in claimed if number not in found]):
                    found |= self._request(file, run)
            left = [number for number in left if number not in found]
            if left:
                time.sleep(_POLL_S)
        return found

    def _request(self, file: File, run: Sequence[int]) -> Found:
        start, stop = file.bounds(run[0])[0], file.bounds(run[-1])[1]

        def once(left_s: float) -> bytes:
            self.num_requests += 1
            content = store_of(file.url, self.settings).fetch(file.url, start, stop, file.info, left_s)
            if len(content) == file.info.size > stop - start:
                content = content[start:stop]  # a store that ignores ranges
            if len(content) != stop - start:
                raise PassingError(f"{len(content):,} bytes came of {stop - start:,}")
            return content

        content = persist(file.url, self.settings, once)
        found = {number: content[(number - run[0]) * PIECE_BYTES :][:PIECE_BYTES] for number in run}
        if file.info.version:  # else nothing would tell it from a later one
            for number, piece in found.items():
                self.pieces.write(file.key(number), piece)
        return found


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Divides numbers into runs of neighbours, of which each becomes a request."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1 and len(runs[-1]) < _REQUEST_PIECES:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _cut(file: File, found: Found, start: int, stop: int) -> bytes:
    parts = []
    for number in file.pieces(start, stop):
        first = number * PIECE_BYTES
        parts.append(found[number][max(start - first, 0) : stop - first])
    return parts[0] if len(parts) == 1 else b"".join(parts)


_readers: dict[StorageSettings, Reader] = {}
_lock = threading.Lock()


def reader(settings: StorageSettings) -> Reader:
    """Returns this process's reader; a fork begins with none, because threads and connections stay with the parent."""
    with _lock:
        if settings not in _readers:
            _readers[settings] = Reader(settings)
        return _readers[settings]


def _begin_anew() -> None:
    global _lock
    _lock = threading.Lock()
    _readers.clear()


os.register_at_fork(after_in_child=_begin_anew)


def require_within(file: File, start: int, stop: int) -> None:
    """Checks a range.

    Raises:
        StorageError: where the file ends before.
    """
    if not 0 <= start <= stop:
        raise ValueError(f"bytes {start} to {stop} are no range")
    if stop > file.info.size:
        raise StorageError(f"{file.url} ends at byte {file.info.size:,}, before {stop:,}: copy it there again")
