"""Comparisons: the files of large folders with what they were when they were last read, while a run trains on them."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainkit.errors import DataError
from trainkit.logger import logger

MOST_WAIT_S = 300.0
"""At the end of a run, for what is left to compare."""
NAMED = 3
"""Files in a message."""
_PROCESS = "trainkit.data.comparison_process"
_END_WITHIN_S = 2.0
_POLL_S = 0.1


@dataclass(frozen=True)
class Compared:
    """A folder that is compared with the last look at it.

    Args:
        root: the folder.
        memory: the cache.
        listing: the directory of the look in it.
        grouping: the name of the grouping of the files.
        sorting: of the scan; see `Sorting`.
        state: the hash of the names and states of all files.
        num_files: of the folder.
    """

    root: Path
    memory: Path
    listing: Path
    grouping: str
    sorting: str
    state: str
    num_files: int


_wanted: ContextVar["Comparisons | None"] = ContextVar("wanted", default=None)


class Comparisons:
    """The comparisons of a run: each is a process of low priority, on one rank of each machine.

    A context that ends what is left of them. They end with the process that began them, however it ends. A run from a
    configuration does this by itself; in one's own:

        with Comparisons() as comparisons:
            with comparisons.later():
                datasets = runtime.ranks.first_on_host(Text(path="texts").load)
            trainer = Trainer(MyRecipe(runtime, datasets))
            trainer.comparisons = comparisons
            trainer.fit()

    Args:
        is_first: whether this rank makes those of its machine; None: where its local rank is 0.
    """

    def __init__(self, is_first: bool | None = None) -> None:
        if is_first is None:
            from trainkit.distributed.cluster import Cluster  # imports torch, which the comparing process does not need

            is_first = Cluster.from_environment().local_rank == 0
        self._is_first = is_first
        self._of: dict[tuple[Path, str], _Comparison] = {}
        self._told: Callable[[], None] | None = None
        self._lock = threading.Lock()

    @contextmanager
    def later(self) -> Iterator[None]:
        """Context manager in which data of large folders are used before all their files were looked at."""
        token = _wanted.set(self)
        try:
            yield
        finally:
            _wanted.reset(token)

    def begin(self, of: Compared) -> None:
        """Begins to compare a folder, unless it has begun."""
        key = of.root.resolve(), of.grouping
        if self._is_first and key not in self._of:
            files = f"{of.root}: {of.num_files:,} files were seen before"
            logger(__name__).info(f"{files}; they are compared with what they were while the run trains")
            self._of[key] = _Comparison(of, self._tell)

    def when_changed(self, call: Callable[[], None]) -> None:
        """Calls a function, in a thread, once a change is found; at once where one has been found."""
        with self._lock:
            self._told = call
        if self.error() is not None:
            call()

    def _tell(self) -> None:
        with self._lock:
            told = self._told
        if told is not None:
            told()

    def error(self) -> DataError | None:
        """Returns what is wrong with the files; None: nothing that is known so far."""
        return next((found for one in self._of.values() if (found := one.error()) is not None), None)

    def facts(self) -> dict[str, str]:
        """Returns how many files have been compared, by folder, for a manifest."""
        return {str(one.of.root): f"{one.num:,} of {one.of.num_files:,}" for one in self._of.values()}

    def wait(self, ends: Callable[[], bool], progress: bool = True) -> None:
        """Waits until all are done, for at most `MOST_WAIT_S`, and says what was not compared.

        Args:
            ends: asked meanwhile; true: it waits no longer.
            progress: whether to show a progress bar.
        """
        from trainkit.data.progress import track

        total = sum(one.of.num_files for one in self._of.values())
        for _ in track(self._advances(ends), "comparing the files that are left", total, progress, size=int):
            pass
        for one in self._of.values():
            if not one.is_done:
                rest = f"{one.num:,} of {one.of.num_files:,} files were compared with what they were"
                logger(__name__).warning(f"{one.of.root}: the run ends, and {rest}; set data.verify=full to read all")

    def _advances(self, ends: Callable[[], bool]) -> Iterator[int]:
        deadline, before = time.monotonic() + MOST_WAIT_S, 0
        while not all(one.is_done for one in self._of.values()) and time.monotonic() < deadline and not ends():
            now = sum(one.num for one in self._of.values())
            yield now - before
            before = now
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Ends what is not done."""
        for one in self._of.values():
            one.close()

    def __enter__(self) -> "Comparisons":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wanted() -> Comparisons | None:
    """Returns what compares large folders; None: whoever asks for their files waits until all were looked at."""
    return _wanted.get()


class _Comparison:
    """One folder, by a process of its own: a thread would take turns with the training for the interpreter."""

    def __init__(self, of: Compared, changed: Callable[[], None]) -> None:
        self.of, self.num, self._changed = of, 0, changed
        self._end: dict[str, Any] | None = None
        self._last_words: list[str] = []
        self._is_closing = False
        given = (of.root, of.memory, of.listing, of.grouping, of.sorting, of.state, time.time_ns())
        paths = (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", _PROCESS, *map(str, given)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,  # Ctrl-C is for the run, which ends it
        )
        self._thread = threading.Thread(target=self._listen, name="trainkit-comparison", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(b"{"):
                told = json.loads(line)
                self.num = told.get("num", self.num)
                self._end = told.get("end")
            else:
                self._last_words = [*self._last_words[1 - NAMED :], line.decode(errors="replace").strip()]
        self._process.wait()
        if self._is_closing:
            return
        if self._end is None or "error" in self._end:
            why = self._end["error"] if self._end else " ".join(self._last_words) or f"exit {self._process.returncode}"
            logger(__name__).warning(f"{self.of.root}: its files could not be compared with what they were ({why})")
        elif self._end["num_changed"]:
            self._changed()
        elif self._end["num_later"]:
            since = f"{_files(self._end['num_later'])} changed since the run began ({self._named()})"
            logger(__name__).warning(f"{self.of.root}: {since}; it trains on them as they were before")
        else:
            seconds = f"{self._end['seconds']:.0f} s beside the training"
            logger(__name__).info(f"{self.of.root}: all {self.num:,} files are as they were: {seconds}")

    def _named(self) -> str:
        assert self._end is not None
        num = self._end["num_changed"] or self._end["num_later"]
        return ", ".join(self._end["named"]) + (", ..." if num > len(self._end["named"]) else "")

    def error(self) -> DataError | None:
        if self._end is None or not self._end.get("num_changed"):
            return None
        num = self._end["num_changed"]
        return DataError(
            f"data.path={self.of.root}: {_files(num)} changed before this run began ({self._named()}), and it trains "
            f"on what they held when they were last read"
        )

    def close(self) -> None:
        self._is_closing = True
        self._process.terminate()
        try:
            self._process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._thread.join(_END_WITHIN_S)
        assert self._process.stdout is not None
        if self.is_done:
            self._process.stdout.close()


def _files(num: int) -> str:
    return f"{num:,} file{'s' if num > 1 else ''}"
