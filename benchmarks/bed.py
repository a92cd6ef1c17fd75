"""Hosts on one machine: network namespaces of Linux, each with a link of a given rate to a common switch.

A host is a process with its own network namespace and hostname. Its `eth0` is connected to a bridge in the namespace of
the server process, and token buckets at both ends of the link limit the rates of sending and receiving. A namespace
exists as long as a process is in it, so nothing remains after the processes have ended, and the network of the machine
is not changed. All hosts share the file system, except for an /etc/hosts with their names.

A host may have several sockets: then each of these is such a namespace, with a link of its own to a bridge of its host,
and that bridge is connected to the common one. Ranks of a socket share a loopback, as those of a host do otherwise.
"""

import contextlib
import functools
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import spawn
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.bed_server import INTERFACE, Order, address_of, namespace_of, settings, sweep

_MTU = 9000  # large packets, as between machines of a cluster; and fewer of them for this machine to handle
_QUEUE = 2**26  # bytes that wait for a link: all that TCP sends, so that none is dropped
_LEAST_BURST, _BURST_S = 16384, 1e-3  # bytes that may exceed the rate: small, but timers on a busy machine are late
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
    headers; None: as fast as the machine is). With `sockets` above 1, each of these has a link of `socket_mbit_per_s`
    to the others of its host. A context manager: at its end, every process in the bed is killed.

    Raises OSError where `why_not()` has a reason.
    """

    def __init__(
        self,
        num_hosts: int,
        mbit_per_s: float | None = None,
        *,
        sockets: int = 1,
        socket_mbit_per_s: float | None = None,
    ) -> None:
        if (reason := why_not()) is not None:
            raise OSError(f"no bed of hosts: {reason}")
        self.num_hosts, self.sockets = num_hosts, sockets
        self._started: list[subprocess.Popen[Any]] = []
        self._namespaces: list[int] = []
        self._control, theirs = socket.socketpair()
        code = f"import sys; sys.path = {sys.path!r}; from benchmarks.bed_server import serve; serve({theirs.fileno()})"
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
            self._pipe.send((preparation, num_hosts, sockets))
            if not self._pipe.poll(_LIMIT_S):
                raise TimeoutError(f"the bed's server did not start within {_LIMIT_S:.0f} s")
            self._hosts: list[int] = self._pipe.recv()
            self._namespaces = [namespace_of(pid) for pid in (self._server.pid, *self._hosts)]
            self._lay()
            for host in range(num_hosts):
                self.set_rate(host, mbit_per_s)
            for number in range(num_hosts * sockets if sockets > 1 else 0):
                self._shape(socket_mbit_per_s, (self._hosts[number], INTERFACE), (self._server.pid, f"socket{number}"))
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

        `order` "by host": ranks 0 to L-1 on host 0, and so on; "round robin": rank r on host r mod `num_hosts`. The
        ranks of a host are spread over its sockets evenly, in their order.
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
        """A command on each host of one socket, such as torchrun's agent; `options` are Popen's.

        The command has this process's environment and working directory, GLOO_SOCKET_IFNAME, OMP_NUM_THREADS and
        `env`. It and all that it starts are killed at the end of the bed.
        """
        environment = {**os.environ, **settings(), **(env or {})}
        directory = str(options.pop("cwd", None) or Path.cwd())
        for host in range(self.num_hosts):
            command = [*self._enter(self._hosts[host]), "env", "-C", directory, *argv_for_host(host)]
            self._started.append(subprocess.Popen(command, env=environment, start_new_session=True, **options))
        return self._started[-self.num_hosts :]

    def address(self, host: int) -> str:
        """The address of the host's eth0."""
        return address_of(host)

    def tx_bytes(self) -> list[int]:
        """The bytes, with headers, that each host, or each socket of all hosts, has sent since the bed was made."""
        return [tx_bytes(Path(f"/proc/{pid}/net/dev").read_text()) for pid in self._hosts]

    def host_tx_bytes(self) -> list[int]:
        """The bytes, with headers, that each host of several sockets has sent to others since the bed was made."""
        text = Path(f"/proc/{self._server.pid}/net/dev").read_text()
        return [tx_bytes(text, f"up{host}") for host in range(self.num_hosts)]

    def cut(self, host: int) -> None:
        """Takes the host's link down: its packets, and those to it, are lost without a word from now on."""
        self._do(self._server.pid, "ip", [f"link set host{host} down"])

    def set_rate(self, host: int, mbit_per_s: float | None) -> None:
        """Gives the host's link this rate in both directions; None takes the limit off."""
        inner = (self._hosts[host], INTERFACE) if self.sockets == 1 else (self._server.pid, f"up{host}")
        self._shape(mbit_per_s, inner, (self._server.pid, f"host{host}"))

    def _shape(self, mbit_per_s: float | None, *ends: tuple[int, str]) -> None:
        """Limits what leaves each end of a link, given as the process of a namespace and an interface in it."""
        queue = "noqueue"
        if mbit_per_s is not None:
            burst = max(_LEAST_BURST, round(_BURST_S * mbit_per_s * 1e6 / 8))
            queue = f"tbf rate {round(mbit_per_s * 1e6)}bit burst {burst} limit {_QUEUE}"
        for pid, interface in ends:
            self._do(pid, "tc", [f"qdisc replace dev {interface} root {queue}"])

    def end(self) -> None:
        """Kills every process in the bed, with which its namespaces end."""
        self._pipe.close()  # the server's sign to end
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._server.wait(10)
        sweep(self._namespaces)
        for process in (self._server, *self._started):
            process.kill()
            process.wait()

    def _lay(self) -> None:
        """Lays the links: eth0 of each host to its port of the bridge; with sockets, over a bridge of the host."""
        bridges, links, ports = ["switch"], [], []
        kind = "host" if self.sockets == 1 else "socket"
        for number, pid in enumerate(self._hosts):
            ports.append((f"{kind}{number}", "switch" if self.sockets == 1 else f"inner{number // self.sockets}"))
            links.append(
                f"link add {kind}{number} mtu {_MTU} type veth peer name {INTERFACE} mtu {_MTU} netns {pid}",
            )
        for host in range(self.num_hosts if self.sockets > 1 else 0):
            bridges.append(f"inner{host}")
            ports += [(f"host{host}", "switch"), (f"up{host}", f"inner{host}")]
            links.append(f"link add host{host} mtu {_MTU} type veth peer name up{host} mtu {_MTU}")
        made = [f"link add {name} mtu {_MTU} type bridge mcast_snooping 0" for name in bridges]
        # Without addresses of IPv6 and snooping, no host sends a packet that is not of the ranks.
        quiet = [f"link set {name} addrgenmode none" for name in (*bridges, *(port for port, _ in ports))]
        up = [f"link set {name} up" for name in bridges] + [f"link set {port} master {to} up" for port, to in ports]
        self._do(self._server.pid, "ip", [*made, *links, *quiet, *up])
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


def tx_bytes(table: str, interface: str = INTERFACE) -> int:
    """What an interface has sent, by the text of /proc/net/dev."""
    (line,) = [line for line in table.splitlines() if line.strip().startswith(f"{interface}:")]
    return int(line.split(":")[1].split()[8])
