"""Crew: a bounded number of threads that do what they are given in its order, and do not keep a process from ending."""

import atexit
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_END_WITHIN_S = 2.0


class Crew:
    """Threads, started when there is work for them; those of a ThreadPoolExecutor would first do all that is left.

    Args:
        size: the number of threads at most.
        name: of the threads.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size, self._name = size, name
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._is_ending = False
        _crews.add(self)

    def do(self, work: Callable[[], Any]) -> "Future[Any]":
        """Gives the crew work; returns its future."""
        future: Future[Any] = Future()
        self._work.put((future, work))
        with self._lock:
            if len(self._threads) < self._size:
                name = f"{self._name}-{len(self._threads)}"
                thread = threading.Thread(target=self._run, daemon=True, name=name)
                self._threads.append(thread)
                thread.start()
        return future

    def end(self) -> None:
        """Drops what has not begun, and waits for what has, for two seconds at most."""
        self._is_ending = True
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(_END_WITHIN_S / len(self._threads))

    def _run(self) -> None:
        while (given := self._work.get()) is not None:
            future, work = given
            if self._is_ending or not future.set_running_or_notify_cancel():
                future.cancel()
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # whoever asks for the result gets it
                future.set_exception(error)
            del given, future, work  # its result is not kept until the next comes


_crews: "weakref.WeakSet[Crew]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    for crew in list(_crews):
        crew.end()
