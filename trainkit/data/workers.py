"""Workers: processes or threads that fetch batches ahead, and hand them over in order."""

import multiprocessing
import os
import signal
import threading
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from trainkit.data.batch import Batch
from trainkit.data.slots import Packed, Slot
from trainkit.errors import LoaderError

AHEAD = 2
"""Batches that are asked of each worker at a time: it fetches one while the one before is taken."""
NAME = "trainkit-fetch"
"""Of processes and threads."""
_END_WITHIN_S = 5.0  # of a worker that is told to end, before it is ended

Fetch = Callable[[int], Batch | None]
"""Returns the batch at a position; None: there is none any more."""


class Workers(ABC):
    """Workers that are asked for batches, and give them in the order in which they were asked."""

    @abstractmethod
    def ask(self, position: int) -> None:
        """Asks for the batch at a position."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether `receive` would return at once."""

    @abstractmethod
    def receive(self) -> Batch | None:
        """Waits for the batch that was asked for first, and returns it.

        Raises:
            LoaderError: where the worker has ended. What is raised while a batch is fetched is raised here.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the workers."""


class ThreadWorkers(Workers):
    """Threads of this process, which share its data: nothing is handed over. For data that are read without Python.

    Args:
        prepare: called in order, in the process's own thread: returns what fetches the batch at a position, in any
            thread.
        num_workers: threads.
    """

    def __init__(self, prepare: Callable[[int], Callable[[], Batch]], num_workers: int) -> None:
        self._prepare = prepare
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix=NAME)
        self._asked: deque[Future[Batch]] = deque()

    def ask(self, position: int) -> None:
        self._asked.append(self._pool.submit(self._prepare(position)))

    def is_ready(self) -> bool:
        return bool(self._asked) and self._asked[0].done()

    def receive(self) -> Batch:
        return self._asked.popleft().result()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class ProcessWorkers(Workers):
    """Processes, for data that Python transforms; arrays are handed over in memory that is shared.

    Args:
        fetch: called in the processes, of which each has a copy.
        num_workers: processes.
    """

    def __init__(self, fetch: Fetch, num_workers: int) -> None:
        self._slots = [[Slot() for _ in range(AHEAD)] for _ in range(num_workers)]
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._num_asked = self._num_received = 0
        context = multiprocessing.get_context()
        with _signals_blocked():
            for slots in self._slots:
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(fetch, slots, there, here), daemon=True, name=NAME)
                process.start()
                there.close()  # so that the end of the process ends the connection
                self._processes.append(process)
                self._connections.append(here)

    def ask(self, position: int) -> None:
        number, worker = divmod(self._num_asked, len(self._connections))
        self._num_asked += 1
        with suppress(BrokenPipeError):  # `receive` says that it has ended
            self._connections[worker].send((position, number % AHEAD))

    def is_ready(self) -> bool:
        return self._num_received < self._num_asked and self._connections[self._next()].poll()

    def receive(self) -> Batch | None:
        worker = self._next()
        number = self._num_received // len(self._connections)
        try:
            answer = self._connections[worker].recv()
        except (EOFError, ConnectionResetError):
            raise self._ended(self._processes[worker]) from None
        self._num_received += 1
        if isinstance(answer, Packed):
            batch: Batch | None = self._slots[worker][number % AHEAD].take(answer)
            return batch
        error, where = answer
        error.add_note(f"raised in a process that fetches data (num_workers):\n{where}")
        raise error

    def close(self) -> None:
        for connection in self._connections:
            with suppress(BrokenPipeError):
                connection.send(None)  # other processes may hold copies of this end
            connection.close()
        for process in self._processes:
            process.join(_END_WITHIN_S)
            if process.exitcode is None:
                process.terminate()
                process.join()
        for slot in (slot for slots in self._slots for slot in slots):
            slot.close()

    def _next(self) -> int:
        return self._num_received % len(self._connections)

    @staticmethod
    def _ended(process: BaseProcess) -> LoaderError:
        process.join(_END_WITHIN_S)
        code = process.exitcode
        how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"
        why = " (often because memory ran out)" if code == -signal.SIGKILL else ""
        return LoaderError(
            f"a process that fetches data {how}{why}: set num_workers lower, or num_workers=0 to see what it does"
        )


def _serve(fetch: Fetch, slots: list[Slot], connection: Connection, other_end: Connection) -> None:
    """Answers with batches until the other end is closed, also by the end of its process."""
    other_end.close()
    _end_with_parent()
    torch.set_num_threads(1)  # as in the workers of torch's DataLoader
    while True:
        try:
            asked = connection.recv()
        except (EOFError, ConnectionResetError):  # the other process was killed
            asked = None
        if asked is None:
            os._exit(0)  # nothing of the process that it was forked from is to be ended here
        position, number = asked
        answer: Packed | tuple[BaseException, str]
        try:
            answer = slots[number].put(fetch(position))
        except Exception as error:
            answer = (error, traceback.format_exc())
        try:
            connection.send(answer)
        except BrokenPipeError:
            os._exit(0)
        except Exception as error:  # one that cannot be pickled
            where = answer[1] if isinstance(answer, tuple) else ""
            connection.send((LoaderError(f"what was raised cannot be handed over ({error})"), where))


_RUN_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks the signals that end a run in processes that are started inside.

    Terminals, torchrun and Slurm signal whole process groups, and the last steps and the checkpoint need the workers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _RUN_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Ends this worker on a SIGTERM from the process that it fetches for, as multiprocessing sends at its exit."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _RUN_SIGNALS)  # also where workers are not forked
    process = multiprocessing.parent_process()
    assert process is not None
    parent = process.pid  # not os.getppid(), which is the server's with start method forkserver

    def listen() -> None:
        while signal.sigwaitinfo(_RUN_SIGNALS).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
