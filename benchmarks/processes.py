"""Pools of ranks on which benchmarks run functions, reused from one run to the next."""

import multiprocessing
import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainkit.errors import TrainkitError

LIMIT_S, GRACE_S = 120.0, 10.0  # of a run; and of the other ranks once one has failed


class RankError(Exception):
    """What a rank raised, as a user sees it."""


class Ranks:
    """Processes of a group that are kept, because starting Python and torch takes most of the time."""

    def __init__(self, world_size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.is_broken = False
        self.directory = tempfile.TemporaryDirectory()
        self.pipes: list[Any] = []
        self.processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            store = str(Path(self.directory.name) / "store")
            process = context.Process(target=_work, args=(theirs, rank, world_size, store), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(*arguments)` returns, by rank. RankError: the first error of a rank, or one is not done."""
        for pipe in self.pipes:
            pipe.send((function, arguments))
        answers: dict[Any, Any] = {}
        errors: list[str] = []
        self.is_broken = True  # until all have answered: the others may wait for one that failed
        while len(answers) < len(self.pipes):
            ready = wait([p for p in self.pipes if p not in answers], GRACE_S if errors else LIMIT_S)
            if not ready:
                late = [rank for rank, pipe in enumerate(self.pipes) if pipe not in answers]
                raise RankError(errors[0] if errors else f"ranks {late} were not done within {LIMIT_S:.0f} s")
            for pipe in ready:
                try:
                    assert isinstance(pipe, Connection)
                    answers[pipe], error = pipe.recv()
                except EOFError:
                    raise RankError(f"rank {self.pipes.index(pipe)} ended without a word") from None
                errors += [error] if error is not None else []
        # Where only some have failed, the group still holds the messages of those that went on.
        self.is_broken = bool(errors) and len(errors) < len(self.pipes)
        if errors:
            raise RankError(errors[0])
        return [answers[pipe] for pipe in self.pipes]

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(timeout=0 if self.is_broken else GRACE_S)
            process.kill()
            process.join()
        self.directory.cleanup()


def environment(rank: int, world_size: int) -> dict[str, str]:
    """What torchrun tells a process of one machine about the others."""
    names = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
    return {name: str(value) for name, value in names.items()}


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _work(pipe: Any, rank: int, world_size: int, store: str) -> None:
    os.environ.update(environment(rank, world_size))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            dist.destroy_process_group()
            return
        try:
            pipe.send((function(*arguments), None))
        except TrainkitError as error:
            pipe.send((None, f"{type(error).__name__}: {error}"))
        except Exception as error:
            traceback.print_exc()
            pipe.send((None, f"{type(error).__name__}: {error}"))


class Pools:
    """Ranks by their number, made when first asked for, and anew after a failure."""

    def __init__(self) -> None:
        self.pools: dict[int, Ranks] = {}

    def run(self, world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`Ranks.run` on as many ranks."""
        pool = self.pools.get(world_size) or self.pools.setdefault(world_size, Ranks(world_size))
        try:
            return pool.run(function, *arguments)
        finally:
            if pool.is_broken:
                self.pools.pop(world_size).end()

    def end(self) -> None:
        while self.pools:
            self.pools.popitem()[1].end()
