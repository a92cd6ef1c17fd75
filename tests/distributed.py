"""Runs a function on N gloo ranks. Workers are kept per world size: starting Python and torch takes the time."""

import gc
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

_POOLS: dict[int, "_Pool"] = {}
_MOST_GROUPS = 16  # each has threads that look for messages all the time


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """`function(*args)` on every rank of a process group; the results in the order of the ranks.

    `function` and `args` are pickled: a function of a test module's top level. A rank that raises or is not done in
    time fails the call, and its pool is ended, because the other ranks may wait for it for ever.
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
    """Ends every worker process."""
    while _POOLS:
        _POOLS.popitem()[1].end()


class RankError(AssertionError):
    """What a rank raised, with its traceback; `kind` is the exception's class name."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


class _Pool:
    def __init__(self, world_size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.is_worn = False
        self.directory = tempfile.TemporaryDirectory()
        self.connections: list[Connection] = []
        self.processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, world_size, str(Path(self.directory.name) / "store"))
            process = context.Process(target=_work, args=arguments)
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> list[Any]:
        for connection in self.connections:
            connection.send((function, args))
        results: dict[Connection, Any] = {}
        while len(results) < len(self.connections):
            ready = wait([c for c in self.connections if c not in results], timeout_s)
            if not ready:
                late = [rank for rank, c in enumerate(self.connections) if c not in results]
                raise TimeoutError(f"{function.__name__}: ranks {late} were not done within {timeout_s} s")
            for connection in ready:
                kind, value, num_groups = connection.recv()
                self.is_worn = self.is_worn or num_groups > _MOST_GROUPS
                if kind is not None:
                    rank = self.connections.index(connection)
                    raise RankError(f"rank {rank} of {len(self.connections)}:\n{value}", kind)
                results[connection] = value
        return [results[connection] for connection in self.connections]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.directory.cleanup()


def _work(connection: Connection, rank: int, world_size: int, store: str) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
        OMP_NUM_THREADS="1",
        GLOO_SOCKET_IFNAME="lo",
    )
    import torch
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    import trainkit

    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        torch.use_deterministic_algorithms(False)
        try:
            answer = (None, function(*args))
        except BaseException as error:
            answer = (type(error).__name__, traceback.format_exc())
        for thing in gc.get_objects():
            if type(thing) is trainkit.Runtime and hasattr(thing, "_reducer"):  # not one that was refused half-made
                thing.close()
        num_groups = len(distributed_c10d._world.pg_map)
        connection.send((*answer, num_groups))
