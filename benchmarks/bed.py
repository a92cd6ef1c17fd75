"""Hosts on one machine: network namespaces of Linux, each with a link of a given rate to a common switch.

A host is a process with its own network namespace and hostname. Its `eth0` is connected to a bridge in the namespace of
the server process, and token buckets at both ends of the link limit the rates of sending and receiving. A namespace
exists as long as a process is in it, so nothing remains after the processes have ended, and the network of the machine
is not changed. All hosts share the file system, except for an /etc/hosts with their names.
"""

import contextlib
import ctypes
import functools
import gc
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
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
_MTU = 9000  # large packets, as between machines of a cluster; and fewer of them for this machine to handle
_QUEUE = 2**26  # bytes that wait for a link: all that TCP sends, so that none is dropped
_LEAST_BURST, _BURST_S = 16384, 1e-3  # bytes that may exceed the rate: small, but timers on a busy machine are late
_CLONE_NEWUTS, _CLONE_NEWNET, _PR_SET_PDEATHSIG = 0x04000000, 0x40000000, 1
_MOST_GROUPS = 16  # of a rank that is kept: each has threads that look for messages all the time
_LIMIT_S = 60.0  # of making a bed, which takes the time of importing torch
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_WAYS = (["unshare", "-nmu"], ["unshare", "-Urnmu"])  # as root; and as the root of a user namespace
_PROBE = f"""
ip link add port type veth peer name eth0 && ip link add switch type bridge && mount --bind /etc/hosts /etc/hosts &&
tc qdisc add dev port root tbf rate 1mbit burst {_LEAST_BURST} limit {_QUEUE}
"""


class RankError(AssertionError):
    """What a rank raised, with its traceback; `kind` is the exception's class name."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


def why_not() -> str | None:
    """Why there can be no bed on this machine, in a line; None if there can be one."""
    missing = [tool for tool in ("unshare", "nsenter", "ip", "tc") if shutil.which(tool, path=_PATH) is None]
    if missing:
        return f"no program {' and no '.join(missing)}"
    way, errors = _way()
    return None if way else "; ".join(errors)


@functools.cache
def _way() -> tuple[list[str], list[str]]:
    """How this user makes namespaces, [] if not at all; and the errors of the ways that failed."""
    errors: list[str] = []
    for way in _WAYS:
        probe = subprocess.run([*way, "sh", "-c", _PROBE], capture_output=True, text=True, env={"PATH": _PATH})
        if probe.returncode == 0:
            return way, errors
        errors.append(f"{' '.join(way)}: {' '.join(probe.stderr.split())}")
    return [], errors


class Bed:
    """`num_hosts` hosts, each with a full-duplex link of `mbit_per_s` (10^6 bits a second of packets with their
    headers; None: as fast as the machine is). A context manager: at its end, every process in the bed is killed.

    Raises OSError where `why_not()` has a reason.
    """

    def __init__(self, num_hosts: int, mbit_per_s: float | None = None) -> None:
        if (reason := why_not()) is not None:
            raise OSError(f"no bed of hosts: {reason}")
        self.num_hosts = num_hosts
        self._started: list[subprocess.Popen[Any]] = []
        self._namespaces: list[int] = []
        self._control, theirs = socket.socketpair()
        code = f"import sys; sys.path = {sys.path!r}; from benchmarks.bed import _serve; _serve({theirs.fileno()})"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": _PATH}
        self._server = subprocess.Popen(
            [*_way()[0], sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            env=environment,
            start_new_session=True,  # so that Ctrl-C reaches this process alone, which ends the bed
        )
        theirs.close()
        self._pipe = Connection(self._control.detach())
        try:
            preparation = spawn.get_preparation_data("bed")
            preparation.pop("authkey")  # not to be sent, and of no use there
            self._pipe.send((preparation, num_hosts))
            if not self._pipe.poll(_LIMIT_S):
                raise TimeoutError(f"the bed's server did not start within {_LIMIT_S:.0f} s")
            self._hosts: list[int] = self._pipe.recv()
            self._namespaces = [_namespace(pid) for pid in (self._server.pid, *self._hosts)]
            self._lay()
            for host in range(num_hosts):
                self.set_rate(host, mbit_per_s)
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> "Bed":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        ranks_per_host: int = 2,
        order: Order = "by host",
        timeout_s: float = 120.0,
    ) -> list[Any]:
        """`function(*args)` on every rank of a gloo process group over all hosts; the results by rank.

        `order` "by host": ranks 0 to L-1 on host 0, and so on; "round robin": rank r on host r mod `num_hosts`.
        `function` and `args` are pickled: a function of a module's top level. The ranks are kept for the next call
        with the same `ranks_per_host` and `order`. RankError: the first error of a rank; TimeoutError: ranks were not
        done in time. Then all ranks are killed, and the next call has new ones.
        """
        payload = pickle.dumps((function, args))
        try:
            self._pipe.send((ranks_per_host, order, timeout_s, payload))
            kind, value = self._pipe.recv()
        except BaseException:
            self.end()
            raise
        if kind == "late":
            raise TimeoutError(f"{function.__name__}: ranks {value} were not done within {timeout_s} s")
        if kind != "done":
            raise RankError(value, kind)
        return [pickle.loads(result) for result in value]

    def start(
        self, argv_for_host: Callable[[int], list[str]], env: dict[str, str] | None = None, **options: Any
    ) -> list[subprocess.Popen[Any]]:
        """A command on each host, such as torchrun's agent; `options` are Popen's.

        The command has this process's environment and working directory, GLOO_SOCKET_IFNAME, OMP_NUM_THREADS and
        `env`. It and all that it starts are killed at the end of the bed.
        """
        environment = {**os.environ, **_settings(), **(env or {})}
        directory = str(options.pop("cwd", None) or Path.cwd())
        for host in range(self.num_hosts):
            command = [*self._enter(self._hosts[host]), "env", "-C", directory, *argv_for_host(host)]
            self._started.append(subprocess.Popen(command, env=environment, start_new_session=True, **options))
        return self._started[-self.num_hosts :]

    def address(self, host: int) -> str:
        """The address of the host's eth0."""
        return _address(host)

    def tx_bytes(self) -> list[int]:
        """The bytes, with headers, that each host has sent on its eth0 since the bed was made."""
        return [_tx_bytes(Path(f"/proc/{pid}/net/dev").read_text()) for pid in self._hosts]

    def cut(self, host: int) -> None:
        """Takes the host's link down: its packets, and those to it, are lost without a word from now on."""
        self._do(self._server.pid, "ip", [f"link set host{host} down"])

    def set_rate(self, host: int, mbit_per_s: float | None) -> None:
        """Gives the host's link this rate in both directions; None takes the limit off."""
        queue = "noqueue"
        if mbit_per_s is not None:
            burst = max(_LEAST_BURST, round(_BURST_S * mbit_per_s * 1e6 / 8))
            queue = f"tbf rate {round(mbit_per_s * 1e6)}bit burst {burst} limit {_QUEUE}"
        for pid, interface in ((self._hosts[host], INTERFACE), (self._server.pid, f"host{host}")):
            self._do(pid, "tc", [f"qdisc replace dev {interface} root {queue}"])

    def end(self) -> None:
        """Kills every process in the bed, with which its namespaces end."""
        self._pipe.close()  # the server's sign to end
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._server.wait(10)
        _sweep(self._namespaces)
        for process in (self._server, *self._started):
            process.kill()
            process.wait()

    def _lay(self) -> None:
        """Lays the links: eth0 of each host to its port of the bridge."""
        up = [f"link set host{host} master switch up" for host in range(self.num_hosts)]
        links = [
            f"link add host{host} mtu {_MTU} type veth peer name {INTERFACE} mtu {_MTU} netns {pid}"
            for host, pid in enumerate(self._hosts)
        ]
        # Without addresses of IPv6 and snooping, no host sends a packet that is not of the ranks.
        quiet = [
            f"link set {name} addrgenmode none" for name in ("switch", *(f"host{h}" for h in range(self.num_hosts)))
        ]
        bridge = [f"link add switch mtu {_MTU} type bridge mcast_snooping 0", *links, *quiet, "link set switch up", *up]
        self._do(self._server.pid, "ip", bridge)
        for host, pid in enumerate(self._hosts):
            address = f"addr add {self.address(host)}/16 dev {INTERFACE}"
            inside = ["link set lo up", f"link set {INTERFACE} addrgenmode none", address, f"link set {INTERFACE} up"]
            self._do(pid, "ip", inside)

    def _do(self, pid: int, tool: str, lines: list[str]) -> None:
        """Runs lines of `ip` or `tc` in the namespaces of a process."""
        command = [*self._enter(pid), tool, "-batch", "-"]
        done = subprocess.run(
            command, input="\n".join(lines), capture_output=True, text=True, env={"PATH": _PATH}, check=False
        )
        if done.returncode:
            raise OSError(f"{tool}: {' '.join(done.stderr.split())}")

    def _enter(self, pid: int) -> list[str]:
        """The start of a command line that runs a program, under its own pid, in the namespaces of a process."""
        user = ["-U", "--preserve-credentials"] if _way()[0] == _WAYS[1] else []
        return [shutil.which("nsenter", path=_PATH) or "", "-t", str(pid), *user, "-n", "-m", "-u"]


def _tx_bytes(table: str) -> int:
    """The ninth number of eth0's line of /proc/net/dev."""
    (line,) = [line for line in table.splitlines() if line.strip().startswith(f"{INTERFACE}:")]
    return int(line.split(":")[1].split()[8])


def _address(host: int) -> str:
    return f"10.77.{(host + 1) // 256}.{(host + 1) % 256}"


def _namespace(pid: int) -> int:
    """A descriptor of the network namespace of a process, which keeps its number from being given to another."""
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)


def _sweep(namespaces: list[int]) -> None:
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


def _settings() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": INTERFACE}


# ---- The server and what it forks.


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _serve(descriptor: int) -> None:
    """The server: makes the hosts, then runs functions on ranks that it forks, until the other end is closed."""
    control = Connection(descriptor)
    preparation, num_hosts = control.recv()
    hosts = [_fork(_hold, host) for host in range(num_hosts)]
    with tempfile.TemporaryDirectory() as directory:
        names = Path(directory) / "hosts"
        lines = [f"{_address(host)} bed-host{host}\n" for host in range(num_hosts)]
        names.write_text("".join(["127.0.0.1 localhost\n", *lines]))  # torchrun looks its host up
        subprocess.run(["mount", "--bind", str(names), "/etc/hosts"], check=True)
        for _, pipe in hosts:
            pipe.recv()
        namespaces = [_namespace(process.pid) for process, _ in hosts]
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
                    pool = _Pool([process.pid for process, _ in hosts], ranks_per_host, order, directory, payload)
                answer = pool.run(payload, timeout_s, control)
                if answer[0] != "done" or pool.is_worn:
                    pool.end()
                    pool = None
                control.send(answer)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        finally:
            _sweep(namespaces)


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

    def __init__(self, hosts: list[int], ranks_per_host: int, order: Order, directory: str, payload: bytes) -> None:
        self.shape = (ranks_per_host, order)
        self.is_worn = False
        world_size = len(hosts) * ranks_per_host
        with contextlib.suppress(Exception):  # the modules of the function, once for all; a rank reports an error
            pickle.loads(payload)
        store = tempfile.mktemp(dir=directory)
        self.ranks = []
        for rank in range(world_size):
            host, local = divmod(rank, ranks_per_host) if order == "by host" else divmod(rank, len(hosts))[::-1]
            environment = {
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(local),
                "LOCAL_WORLD_SIZE": str(ranks_per_host),
                **_settings(),
            }
            self.ranks.append(_fork(_work, hosts[host], environment, f"file://{store}"))

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
