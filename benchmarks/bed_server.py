"""The server of a bed: makes its network namespaces, and runs functions on ranks that it forks in them."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import spawn
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, Literal

Order = Literal["by host", "round robin"]

INTERFACE = "eth0"
_CLONE_NEWUTS, _CLONE_NEWNET, _PR_SET_PDEATHSIG = 0x04000000, 0x40000000, 1
_MOST_GROUPS = 16  # of a rank that is kept: each has threads that look for messages all the time


def address_of(host: int) -> str:
    return f"10.77.{(host + 1) // 256}.{(host + 1) % 256}"


def namespace_of(pid: int) -> int:
    """A descriptor of the network namespace of a process, which keeps its number from being given to another."""
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)


def sweep(namespaces: list[int]) -> None:
    """Kills the processes in these network namespaces, and those that they start meanwhile; closes the descriptors."""
    wanted = {os.fstat(namespace).st_ino for namespace in namespaces}
    for _ in range(500):
        found = False
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or is of another user
                if (process / "ns" / "net").stat().st_ino in wanted:
                    os.kill(int(process.name), signal.SIGKILL)
                    found = True
        if not found:
            break
        time.sleep(0.01)
    while namespaces:
        os.close(namespaces.pop())


def settings() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": INTERFACE}


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def serve(descriptor: int) -> None:
    """The server: makes the hosts, then runs functions on ranks that it forks, until the other end is closed."""
    control = Connection(descriptor)
    preparation, num_hosts, sockets = control.recv()
    hosts = [_fork(_hold, number // sockets) for number in range(num_hosts * sockets)]
    with tempfile.TemporaryDirectory() as directory:
        names = Path(directory) / "hosts"
        lines = [f"{address_of(host * sockets)} bed-host{host}\n" for host in range(num_hosts)]
        names.write_text("".join(["127.0.0.1 localhost\n", *lines]))  # torchrun looks its host up
        subprocess.run(["mount", "--bind", str(names), "/etc/hosts"], check=True)
        for _, pipe in hosts:
            pipe.recv()
        namespaces = [namespace_of(process.pid) for process, _ in hosts]
        pool: _Pool | None = None
        try:
            control.send([process.pid for process, _ in hosts])
            # Once, for all ranks that are forked. As multiprocessing does it, so that functions of __main__ are found.
            spawn.prepare(preparation)
            import torch.distributed

            import trainkit  # noqa: F401

            torch.set_num_threads(1)
            while True:
                ranks_per_host, order, timeout_s, payload = control.recv()
                if pool is None or pool.shape != (ranks_per_host, order):
                    if pool is not None:
                        pool.end()
                    pids = [process.pid for process, _ in hosts]
                    pool = _Pool(pids, sockets, ranks_per_host, order, directory, payload)
                answer = pool.run(payload, timeout_s, control)
                if answer[0] != "done" or pool.is_worn:
                    pool.end()
                    pool = None
                control.send(answer)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        finally:
            sweep(namespaces)


def _fork(function: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
    """A process that is killed when this one ends, and the pipe to it."""
    ours, theirs = Pipe()
    process = multiprocessing.get_context("fork").Process(target=function, args=(theirs, *arguments))
    process.start()
    theirs.close()
    return process, ours


def _hold(pipe: Connection, host: int) -> None:
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    _call("unshare", _CLONE_NEWNET | _CLONE_NEWUTS)
    socket.sethostname(f"bed-host{host}")
    pipe.send("ready")
    signal.pause()


class _Pool:
    """Ranks on the hosts, kept from one function to the next."""

    def __init__(
        self, pids: list[int], sockets: int, ranks_per_host: int, order: Order, directory: str, payload: bytes
    ) -> None:
        self.shape = (ranks_per_host, order)
        self.is_worn = False
        num_hosts = len(pids) // sockets
        world_size = num_hosts * ranks_per_host
        with contextlib.suppress(Exception):  # the modules of the function, once for all; a rank reports an error
            pickle.loads(payload)
        store = tempfile.mktemp(dir=directory)
        self.ranks = []
        for rank in range(world_size):
            host, local = divmod(rank, ranks_per_host) if order == "by host" else divmod(rank, num_hosts)[::-1]
            number = host * sockets + local * sockets // ranks_per_host
            environment = {
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(local),
                "LOCAL_WORLD_SIZE": str(ranks_per_host),
                **settings(),
            }
            self.ranks.append(_fork(_work, pids[number], environment, f"file://{store}"))

    def run(self, payload: bytes, timeout_s: float, control: Connection) -> tuple[str, Any]:
        """("done", the pickled results), (the kind of the first error, its text), or ("late", ranks)."""
        pipes: list[Any] = [pipe for _, pipe in self.ranks]
        for pipe in pipes:
            with contextlib.suppress(BrokenPipeError):  # it has ended: noticed below
                pipe.send_bytes(payload)
        results: dict[Any, bytes] = {}
        until = time.monotonic() + timeout_s
        while len(results) < len(pipes):
            ready: list[Any] = wait(
                [control, *(p for p in pipes if p not in results)], max(0, until - time.monotonic())
            )
            if control in ready:
                raise EOFError
            if not ready:
                return "late", [rank for rank, pipe in enumerate(pipes) if pipe not in results]
            for pipe in ready:
                try:
                    kind, value, num_groups = pipe.recv()
                except (EOFError, ConnectionResetError):
                    kind, value, num_groups = "EOFError", "ended without a word\n", 0
                if kind is not None:
                    return kind, f"rank {pipes.index(pipe)} of {len(pipes)}:\n{value}"
                self.is_worn = self.is_worn or num_groups > _MOST_GROUPS
                results[pipe] = value
        return "done", [results[pipe] for pipe in pipes]

    def end(self) -> None:
        for process, pipe in self.ranks:
            process.kill()
            process.join()
            pipe.close()


def _work(pipe: Connection, host: int, environment: dict[str, str], store: str) -> None:
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    for name in ("net", "uts"):
        descriptor = os.open(f"/proc/{host}/ns/{name}", os.O_RDONLY)
        _call("setns", descriptor, 0)
        os.close(descriptor)
    os.environ.update(environment)
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    import trainkit

    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    while True:
        try:
            payload = pipe.recv_bytes()
        except EOFError:
            return
        try:
            function, args = pickle.loads(payload)
            answer: tuple[str | None, Any] = (None, pickle.dumps(function(*args)))
        except BaseException as error:
            answer = (type(error).__name__, traceback.format_exc())
        for thing in gc.get_objects():
            if type(thing) is trainkit.Runtime:
                thing.close()
        pipe.send((*answer, len(distributed_c10d._world.pg_map)))
