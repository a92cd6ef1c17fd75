"""Work: parts of a build that any number of processes, on any machines that see its folder, share among them."""

import fcntl
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from trainkit.data.progress import track
from trainkit.errors import DataError

POLL_S = 0.2
PATIENCE_S = 300.0
"""Time without a new result after which parts that another process holds are done here, too."""
_AHEAD = 4  # parts per worker that are handed out: more would have to be taken back where one fails


class Finished(Exception):
    """Another process has made the last part."""


class Work:
    """Results by phase and number, each a file that appears whole or not at all.

    Who makes a result holds a lock, which ends with its process. Results are the same whoever makes them, so where a
    file system has no locks between machines, or one of them hangs, work is done twice and nothing is wrong.

    Args:
        folder: of the results; whoever is first at the end removes it.
        goal: the file that the build makes last.
    """

    def __init__(self, folder: Path, goal: Path) -> None:
        self.folder, self.goal = folder, goal

    def result(self, phase: str, number: int = 0) -> Path:
        """Returns the path of a result."""
        return self.folder / phase / f"{number:08}"

    def make(self, phase: str, number: int, write: Callable[[Path], object], *, force: bool = False) -> bool:
        """Makes a result, unless it is there or another process makes it.

        Args:
            phase: of the result.
            number: of the result.
            write: called with the path of a file to write.
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
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_name(f".{target.name}.lock")) as is_ours:
            if target.is_file():
                return True
            if not is_ours and not force:
                return False
            write_whole(target, write)
        return True


def write_whole(target: Path, write: Callable[[Path], object], aside: Path | None = None) -> None:
    """Writes a file that appears whole, on the disk, or not at all.

    Args:
        target: its path; one that exists is replaced.
        write: called with the path of a file to write.
        aside: a folder on the same disk for what a process that is killed leaves; None: that of the file.
    """
    half = (aside or target.parent) / f".{target.name}.{secrets.token_hex(4)}.part"
    try:
        write(half)
        with half.open("rb") as file:
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
    """

    def __init__(self, num_workers: int, progress: bool) -> None:
        self.num_workers, self.progress = num_workers, progress
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
