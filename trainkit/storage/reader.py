"""Reader: reads files of stores in pieces, from the local disk where they are kept there, and ahead of their use."""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from trainkit.cache import cache_root
from trainkit.errors import StorageError
from trainkit.storage.crew import Crew
from trainkit.storage.location import Check, Range
from trainkit.storage.persist import persist
from trainkit.storage.piece_file import PIECE_BYTES
from trainkit.storage.pieces import Pieces
from trainkit.storage.remote_file import File
from trainkit.storage.settings import StorageSettings
from trainkit.storage.store import Info, PassingError, Store
from trainkit.storage.stores import store_of

_REQUEST_PIECES = 4
"""Pieces that one request asks for at most, where they lie together."""
_READING, _AHEAD = 16, 16
"""Threads that fetch what is waited for, and what will be."""
_MOST_AHEAD = 1024
"""Pieces that are asked for ahead of their use at a time; more are fetched when they are read."""
_MEMORY_PIECES = 64
"""Pieces that are kept in memory where the disk keeps none."""
_OTHERS_WITHIN_S = 30.0
"""Seconds for which a piece that another process fetches is waited for."""
_POLL_S = 0.02
_NEAR_S = 10.0
"""Seconds for which a piece that is near is not looked for again, to fetch it ahead."""
_MOST_NEAR = 1 << 16

Found = dict[int, bytes]
MakeCheck = Callable[[], Check]


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
        self._infos: dict[str, Future[Info]] = {}
        self._near: dict[str, float] = {}  # when it was known last
        self._memory: OrderedDict[str, bytes] = OrderedDict()

    def ask(self, url: str, request: Callable[[Store], Any]) -> Any:
        """Asks the store of a URL until it answers; see `persist`."""
        return persist(url, self.settings, lambda _: request(store_of(url, self.settings)))

    def info(self, url: str, known: Callable[[], Info | None], keep: Callable[[Info], None]) -> Info:
        """Asks for the size and the version of a file; threads that do so at the same time share the answer.

        Args:
            url: of the file.
            known: returns what was kept meanwhile.
            keep: called with the answer, before another thread may ask.
        """
        with self._lock:
            if (found := known()) is not None:
                return found
            asked = self._infos.get(url)
            if asked is None:
                future = self._infos[url] = Future()
        if asked is not None:
            return asked.result()
        try:
            future.set_result(self.ask(url, lambda store: store.info(url)))
        except BaseException as error:  # whoever waits gets it, too
            future.set_exception(error)
        finally:
            with self._lock:
                if future.exception() is None:
                    keep(future.result())
                del self._infos[url]
        return future.result()

    def all(self, requests: Sequence[Callable[[], Any]]) -> list[Any]:
        """Makes requests at once, as many as there are threads; returns their answers in order."""
        return [future.result() for future in [self._reading.do(request) for request in requests]]

    def read_ranges(self, file: File, ranges: Sequence[Range], check: Check | None = None) -> list[bytes]:
        """Reads ranges that lie in the file."""
        wanted: dict[int, list[Range]] = {}
        for start, stop in ranges:
            number = start // PIECE_BYTES
            bounds = start - number * PIECE_BYTES, stop - number * PIECE_BYTES
            if start < stop and bounds[1] <= PIECE_BYTES:  # the usual case, and the one that must take no time
                wanted.setdefault(number, []).append(bounds)
                continue
            for number in file.pieces(start, stop):
                first = number * PIECE_BYTES
                wanted.setdefault(number, []).append((max(start - first, 0), min(stop - first, PIECE_BYTES)))
        found: dict[int, Iterator[bytes]] = {}
        missing = []
        for number, inside in wanted.items():
            kept = self._kept(file.key(number), inside)
            if kept is None:
                missing.append(number)
            else:
                found[number] = iter(kept)
        made = None if check is None else lambda: check
        for future in self._fetching(file, sorted(missing), made, self._reading) if missing else ():
            try:
                come = future.result()
            except StorageError:
                self._drop(future)  # the next read asks again
                raise
            found |= {number: _parts(come[number], wanted[number]) for number in come if number in missing}
        return [_joined([next(found[number]) for number in file.pieces(*bounds)]) for bounds in ranges]

    def prefetch(self, file: File, ranges: Sequence[Range], check: MakeCheck | None = None) -> None:
        """Fetches ranges in the background, in their order; an error is raised where they are read."""
        numbers = dict.fromkeys(number for bounds in ranges for number in file.pieces(*bounds))
        if wanted := [number for number in numbers if not self._is_near(file.key(number))]:
            self._fetching(file, wanted[: max(_MOST_AHEAD - len(self._coming), 0)], check, self._ahead)

    @property
    def coming_bytes(self) -> int:
        """About what was asked for and has not come."""
        return len(self._coming) * PIECE_BYTES

    def soon(self, work: Callable[[], None]) -> None:
        """Does work in the background that a read would do again, and whose error it would raise."""
        self._ahead.do(work)

    def forget(self, file: File, ranges: Sequence[Range]) -> None:
        """Drops pieces, which are then fetched again."""
        for number in {number for bounds in ranges for number in file.pieces(*bounds)}:
            self.pieces.remove(file.key(number))
            self._near.pop(file.key(number), None)
            with self._lock:
                self._memory.pop(file.key(number), None)

    def _kept(self, key: str, inside: Sequence[Range]) -> list[bytes] | None:
        if self._memory:
            with self._lock:
                if (piece := self._memory.get(key)) is not None:
                    self._memory.move_to_end(key)
                    return [*_parts(piece, inside)]
        return self.pieces.read_ranges(key, inside)

    def _is_near(self, key: str) -> bool:
        """Whether a piece is here or coming; one that was lately is taken to be, since reads fetch what is not."""
        now = time.monotonic()
        if self._near.get(key, 0.0) > now - _NEAR_S:
            return True
        with self._lock:
            is_near = key in self._memory or key in self._coming
        is_near = is_near or self.pieces.has(key)
        if len(self._near) >= _MOST_NEAR:
            self._near.clear()
        self._near[key] = now  # what is asked for now is near, too
        return is_near

    def _fetching(
        self, file: File, numbers: Sequence[int], check: MakeCheck | None, crew: Crew
    ) -> list["Future[Found]"]:
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
                future = crew.do(partial(self._bring, file, run, check, crew is self._reading))
                self._coming |= {file.key(number): future for number in run}  # before it can be done: it takes the lock
                futures[id(future)] = future
        return [*futures.values()]

    def _drop(self, future: "Future[Found]") -> None:
        with self._lock:
            for key in [key for key, coming in self._coming.items() if coming is future]:
                del self._coming[key]

    def _bring(self, file: File, numbers: Sequence[int], check: MakeCheck | None, is_awaited: bool) -> Found:
        """Fetches pieces, and is done with them before anyone gets them, who may forget them at once."""
        keys = {number: file.key(number) for number in numbers}
        has_failed = True
        unkept: dict[str, bytes] = {}
        try:
            found = self._fetch(file, numbers, None if check is None else check())
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

    def _fetch(self, file: File, numbers: Sequence[int], check: Check | None) -> Found:
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
                    start, stop = file.bounds(number)
                    if (kept := self._kept(file.key(number), [(0, stop - start)])) is not None:
                        found[number] = kept[0]
                for run in _runs([number for number in claimed if number not in found]):
                    found |= self._request(file, run, check)
            left = [number for number in left if number not in found]
            if left:
                time.sleep(_POLL_S)
        return found

    def _request(self, file: File, run: Sequence[int], check: Check | None) -> Found:
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
        if check is not None:
            check(start, content)
        if file.info.version:  # else nothing would tell it from a later one
            self.pieces.write({file.key(number): piece for number, piece in found.items()})
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


def _joined(parts: Sequence[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _parts(piece: bytes, inside: Sequence[Range]) -> Iterator[bytes]:
    return (piece[start:stop] for start, stop in inside)


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
