"""Work: parts of a build that any number of processes, on any machines that reach its folder, share among them."""

import fcntl
import io
import multiprocessing
import os
import random
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from trainkit.data.parallel import in_order
from trainkit.data.progress import track
from trainkit.errors import DataError, StorageError
from trainkit.storage import Location

POLL_S = 0.2
PATIENCE_S = 300.0
"""Time without a new result after which parts that another process holds are done here, too."""
_REMOVING = 16  # requests at a time
_AHEAD = 4  # parts per worker that are handed out: more would have to be taken back where one fails


Write = Callable[[BinaryIO], object]
"""Fills a file."""


class Finished(Exception):
    """Another process has made the last part."""


class Work:
    """Results by phase and number, each a file that appears whole or not at all, on a disk or in a store.

    On a disk, who makes a result holds a lock, which ends with its process. A store has no locks: there, processes
    begin at different results, and one that two of them make at the same time is written twice. Results are the same
    whoever makes them, so that nothing is wrong then, nor where a file system has no locks between machines.

    Two of them are equal where one is a copy of the other in another process, so that what was read can be remembered.

    Args:
        folder: of the results; whoever is first at the end removes it.
        goal: the file that the build makes last.
        name: of this build in this process and its workers; None: a new one.
    """

    def __init__(self, folder: Location, goal: Location, name: str | None = None) -> None:
        self.folder, self.goal, self.name = folder, goal, name or secrets.token_hex(8)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Work) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def has_locks(self) -> bool:
        """Whether a process can see what another one is making."""
        return self.folder.local_path() is not None

    def result(self, phase: str, number: int = 0) -> Location:
        """Returns where a result lies."""
        return self.folder.child(f"{phase}/{number:08}")

    def read(self, phase: str, number: int = 0, start: int = 0, stop: int | None = None) -> bytes:
        """Reads a result, or some bytes of it.

        Raises:
            Finished: where the whole build has ended, and the result was removed.
        """
        return self.read_file(self.result(phase, number), start, stop)

    def read_file(self, where: Location, start: int = 0, stop: int | None = None) -> bytes:
        """Reads a file that is removed at the end of the build; raises as `read`."""
        try:
            return where.read(start, stop)
        except StorageError:
            if self.goal.is_file():
                raise Finished from None
            raise

    def make(self, phase: str, number: int, write: Write, *, force: bool = False) -> bool:
        """Makes a result, unless it is there or another process makes it.

        Args:
            phase: of the result.
            number: of the result.
            write: called with a file to write.
            force: whether it is made although another process holds it.

        Returns:
            Whether it is there.

        Raises:
            Finished: where the whole build has ended.
        """
        target = self.result(phase, number)
        if target.is_file():
            return True
        if self.goal.is_file():
            raise Finished
        path = target.local_path()
        if path is None:
            content = _content(write)
            if not target.is_file():  # another process may have been faster
                target.write(content)
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.with_name(f".{path.name}.lock")) as is_ours:
            if target.is_file():
                return True
            if not is_ours and not force:
                return False
            _write_whole(path, write)
        return True

    def put(self, target: Location, write: Write) -> None:
        """Writes a file beside the results, whole or not at all; one that exists is replaced.

        Args:
            target: where it is to lie.
            write: called with a file to write.
        """
        path = target.local_path()
        if path is None:
            target.write(_content(write))
        else:
            _write_whole(path, write, self.folder.local_path())

    def remove(self) -> None:
        """Removes all results; another process may do so at the same time."""
        if (path := self.folder.local_path()) is not None:
            shutil.rmtree(path, ignore_errors=True)
        elif self.folder.is_folder():
            for _ in in_order(lambda name: self.folder.child(name).remove(), self.folder.names(), _REMOVING):
                pass


def _content(write: Write) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _write_whole(target: Path, write: Write, aside: Path | None = None) -> None:
    """Writes a file that appears whole, on the disk, or not at all.

    Args:
        target: its path; one that exists is replaced.
        write: called with a file to write.
        aside: a folder on the same disk for what a process that is killed leaves; None: that of the file.
    """
    half = (aside or target.parent) / f".{target.name}.{secrets.token_hex(4)}.part"
    try:
        with half.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        half.replace(target)
    finally:
        half.unlink(missing_ok=True)


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Tries to lock a file; whether it is ours. Where the file system knows no locks, it always is."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        except BlockingIOError:
            is_ours = False
        except OSError:
            is_ours = True
        yield is_ours
    finally:
        os.close(descriptor)


class Crew:
    """Processes of this machine that do work; with one worker it is this process.

    Args:
        num_workers: processes.
        progress: whether to show progress bars.
        in_order: whether parts are made in their order. Crews that cannot see what others are making do so in an order
            of their own, and seldom meet.
    """

    def __init__(self, num_workers: int, progress: bool, in_order: bool = True) -> None:
        self.num_workers, self.progress, self.in_order = num_workers, progress, in_order
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Crew":
        if self.num_workers > 1:
            # A fork of this process would lack the threads of its libraries; one of the server's has none to lack.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["trainkit.data.shards.prepare"])
            self._pool = ProcessPoolExecutor(self.num_workers, context, initializer=_one_thread)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, numbers: Sequence[int], make: Callable[..., bool], description: str) -> None:
        """Has every part made, by this crew or by others, and returns when all are there.

        Args:
            numbers: of the parts.
            make: called with a number, and `force`; returns whether the part is there; picklable.
            description: beside the progress bar.

        Raises:
            TrainkitError: the first that a part raises; the others are given up.
        """
        for _ in track(self._made(numbers, make), description, len(numbers), self.progress):
            pass

    def _made(self, numbers: Sequence[int], make: Callable[..., bool]) -> Iterator[int]:
        left, newest = list(numbers), time.monotonic()
        if not self.in_order:
            random.SystemRandom().shuffle(left)  # a generator with a seed would give all of them one order
        while left:
            force = time.monotonic() - newest > PATIENCE_S
            held = []
            for number, is_there in self._results(left, partial(make, force=force)):
                if is_there:
                    newest = time.monotonic()
                    yield number
                else:
                    held.append(number)
            left = held
            if left:
                time.sleep(POLL_S)

    def _results(self, numbers: Sequence[int], make: Callable[[int], bool]) -> Iterator[tuple[int, bool]]:
        if self._pool is None:
            yield from ((number, make(number)) for number in numbers)
            return
        try:
            yield from _completed(self._pool, numbers, make, _AHEAD * self.num_workers)
        except BrokenProcessPool:
            raise DataError(
                "a worker process has ended, perhaps for lack of memory: run the same command again, which goes on "
                "where it ended, with fewer --workers; a script of one's own calls prepare below "
                '`if __name__ == "__main__":`'
            ) from None


def _completed(
    pool: Executor, numbers: Sequence[int], make: Callable[[int], bool], most: int
) -> Iterator[tuple[int, bool]]:
    """The results, as they come, of which at most `most` are on their way."""
    waiting, running = iter(numbers), dict[Future[bool], int]()
    while True:
        while len(running) < most and (number := next(waiting, None)) is not None:
            running[pool.submit(make, number)] = number
        if not running:
            return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield running.pop(future), future.result()


def _one_thread() -> None:
    """A worker is one of as many as there are cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
