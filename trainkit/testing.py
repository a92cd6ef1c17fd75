"""Runs functions on several ranks of this machine, for tests of code that is distributed.

The worker processes are forked from one process that has imported torch and trainkit, and kept from call to call:
starting Python and importing torch would take most of the time of such a test.
"""

import atexit
import gc
import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

_MAX_GROUPS = 16  # process groups that a worker may hold: the threads of each look for messages all the time
# What most processes need; the first for torch.use_deterministic_algorithms.
_PRELOADED = ["torch._inductor.config", "torch.distributed.fsdp", "trainkit.job"]


class RankError(AssertionError):
    """A rank raised. The message holds its traceback.

    Attributes:
        kind: The name of the exception's class.
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """Calls `function(*args)` on every rank of a gloo process group on this machine.

    The processes have the variables that torchrun sets, and one thread each; `torch.distributed` is initialized where
    `world_size` is above 1. They are kept for the next call with the same `world_size`, so what a function changes in
    a process stays: its modules' globals, its environment. A Runtime that it leaves open is closed. After an error
    the next call gets new processes, because the other ranks may wait for the one that failed.

    Args:
        function: Copied to the processes with cloudpickle: by name where they can import it, whole otherwise.
        world_size: Number of processes.
        *args: Copied too.
        timeout_s: Seconds after which a call fails in which no rank returns anymore.

    Returns:
        What each rank returned, in the order of the ranks.

    Raises:
        RankError: A rank raised, or its process ended.
        TimeoutError: A rank did not return in time.

    Example:
        >>> def sum_of_ranks():
        ...     import torch
        ...
        ...     total = torch.tensor(torch.distributed.get_rank())
        ...     torch.distributed.all_reduce(total)
        ...     return total.item()
        >>> run_ranks(sum_of_ranks, 2)
        [1, 1]
    """
    pool = _POOLS.get(world_size) or _POOLS.setdefault(world_size, _Pool(world_size))
    try:
        return pool.run(function, args, timeout_s)
    except BaseException:
        pool.is_worn = True
        raise
    finally:
        if pool.is_worn:
            _POOLS.pop(world_size).end()


def end_pools() -> None:
    """Ends every worker process. Also done at exit."""
    while _POOLS:
        _POOLS.popitem()[1].end()


def fork_context(*modules: str) -> ForkServerContext:
    """The multiprocessing context of the worker processes, for processes of a test's own.

    Its processes are forked from one that has imported torch and trainkit, which the first of them starts.

    Args:
        *modules: What that one imports besides; too late once it runs.
    """
    _PRELOADED.extend(module for module in modules if module not in _PRELOADED)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


@dataclass(frozen=True)
class _Answer:
    """value: what was returned, or the traceback where `raised` names an exception's class."""

    value: Any
    raised: str | None = None
    num_groups: int = 0


class _Pool:
    def __init__(self, world_size: int) -> None:
        context = fork_context()
        self.is_worn = False
        self._directory = tempfile.TemporaryDirectory(prefix="trainkit_")
        self._connections: list[Connection] = []
        self._processes = []
        numbers = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            environment |= {name: str(value) for name, value in (numbers | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            arguments = (theirs, dict(environment), str(Path.cwd()), str(Path(self._directory.name) / "store"))
            process = context.Process(target=_work, args=arguments)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> list[Any]:
        import cloudpickle

        call = cloudpickle.dumps((function, args))
        for connection in self._connections:
            connection.send_bytes(call)
        answers: dict[Connection, Any] = {}
        while len(answers) < len(self._connections):
            ready = wait([c for c in self._connections if c not in answers], timeout_s)
            if not ready:
                late = [rank for rank, c in enumerate(self._connections) if c not in answers]
                name = getattr(function, "__name__", function)
                raise TimeoutError(f"{name}: ranks {late} did not return within {timeout_s} s")
            for connection in self._connections:
                if connection in ready:
                    answers[connection] = self._receive(connection)
        return [answers[connection] for connection in self._connections]

    def _receive(self, connection: Connection) -> Any:
        rank = self._connections.index(connection)
        try:
            answer: _Answer = pickle.loads(connection.recv_bytes())
        except EOFError:
            self._processes[rank].join()
            answer = _Answer(f"its process ended, exit code {self._processes[rank].exitcode}", "ProcessExited")
        if answer.raised is not None:
            raise RankError(f"rank {rank} of {len(self._connections)}:\n{answer.value}", answer.raised)
        self.is_worn = self.is_worn or answer.num_groups > _MAX_GROUPS
        return answer.value

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._directory.cleanup()


_POOLS: dict[int, _Pool] = {}
atexit.register(end_pools)


def _work(connection: Connection, environment: dict[str, str], cwd: str, store: str) -> None:
    """What a worker process does: calls what it receives, and sends the answer."""
    gc.freeze()  # what the parent has imported: neither searched nor copied by this process
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    import torch
    import torch.distributed as dist

    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    while True:
        try:
            call = connection.recv_bytes()
        except EOFError:
            return
        if torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(False)
        connection.send_bytes(_answer(call))


def _answer(call: bytes) -> bytes:
    import cloudpickle
    from torch.distributed import distributed_c10d

    content: bytes
    try:
        function, args = pickle.loads(call)
        value = function(*args)
        _close_runtimes()
        content = cloudpickle.dumps(_Answer(value, num_groups=len(distributed_c10d._world.pg_map)))
    except BaseException as error:
        content = cloudpickle.dumps(_Answer(traceback.format_exc(), type(error).__name__))
    return content


def _close_runtimes() -> None:
    if "trainkit.runtime" not in sys.modules:
        return
    from trainkit.runtime import Runtime

    for thing in gc.get_objects():
        if issubclass(type(thing), Runtime) and hasattr(thing, "reducer"):  # not one that was refused half-made
            thing.close()
