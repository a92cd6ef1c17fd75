"""WorkerProcess: the process of a slot, as the driver starts it and speaks with it.

One server imports what all trials need, and forks the worker of each slot: to import it takes seconds, and a machine
may have 56 slots.
"""

import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from trainkit.sweep.slots import Slot

_CONTEXT = multiprocessing.get_context("forkserver")
_PATIENCE_S = 60.0
_MOST_AT_ONCE = 1 << 20  # bytes


def start_server(threads: int) -> None:
    """Starts the server, unless it runs; it imports while the caller goes on.

    Args:
        threads: of a worker, until it is told another number.
    """
    _CONTEXT.set_forkserver_preload(["trainkit.sweep.imported"])
    with _set(OMP_NUM_THREADS=str(threads), **_of_workers()):
        forkserver.ensure_running()


def threads_of(slot: Slot, num_processes: int) -> int:
    """Threads of each process of a trial in a slot."""
    return max(1, len(slot.cores) // num_processes)


class WorkerProcess:
    """The worker of a slot; it may end, and be started again.

    Args:
        slot: where it runs.
        num_processes: of a trial.
        imported: a file with the names of the modules that trials of all workers have imported.
    """

    def __init__(self, slot: Slot, *, num_processes: int, imported: Path) -> None:
        self.slot, self._imported = slot, imported
        self.threads = threads_of(slot, num_processes)
        self._process: multiprocessing.process.BaseProcess | None = None
        self._ends: tuple[Connection, Connection, Connection]
        self._rest = b""

    @property
    def is_started(self) -> bool:
        """Whether there is a process, which may have ended."""
        return self._process is not None

    def start(self) -> None:
        """Starts the process; its first event is `ready`."""
        start_server(self.threads)
        (events, told), (commanded, commands), (answered, answers) = (_CONTEXT.Pipe(duplex=False) for _ in range(3))
        self._process = _CONTEXT.Process(
            target=_work,
            args=(self._imported, told, commanded, answered),
            kwargs={
                "environment": {**os.environ, **_of_workers()},  # the server has that of its start
                "directory": Path.cwd(),
                "threads": self.threads,
                "devices": ",".join(self.slot.devices),
                "memory_share": self.slot.memory_share,
            },
        )
        self._process.start()
        with suppress(ProcessLookupError):
            os.sched_setaffinity(self._process.pid or 0, self.slot.cores)
        for end in (told, commanded, answered):
            end.close()
        self._ends, self._rest = (events, commands, answers), b""

    def fileno(self) -> int:
        """The file descriptor that is readable when there are events."""
        return self._ends[0].fileno()

    def events(self) -> list[dict[str, Any]] | None:
        """Reads the events that have come; None: the process has ended, and there will be no more."""
        chunk = os.read(self.fileno(), _MOST_AT_ONCE)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [json.loads(line) for line in lines] if chunk else None

    def send(self, command: Mapping[str, Any]) -> None:
        """Gives the process a command; one that is gone takes none, and its events say so."""
        line = (json.dumps(command) + "\n").encode()
        with suppress(BrokenPipeError):
            while line:
                line = line[os.write(self._ends[1].fileno(), line) :]

    def answer(self, byte: bytes) -> None:
        """Answers the trial, which waits after an evaluation; it may have been killed meanwhile."""
        with suppress(OSError):
            os.write(self._ends[2].fileno(), byte)

    def kill(self) -> None:
        """Ends the process and its trial immediately."""
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        """Ends the process, once its trial has ended."""
        if self._process is None:
            return
        for end in (self._ends[1], self._ends[2], self._ends[0]):
            end.close()
        self._process.join(_PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._process = None


def _work(*args: Any, **kwargs: Any) -> None:
    from trainkit.sweep.worker import main  # by the server; the driver starts it before it imports anything itself

    main(*args, **kwargs)


def _of_workers() -> dict[str, str]:
    """The variables that differ from those of the driver in all workers."""
    paths = [str(Path(__file__).resolve().parents[2]), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # to count GPUs must not start CUDA: forks could not use it
    }


@contextmanager
def _set(**values: str) -> Iterator[None]:
    """A context in which these variables are set."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
