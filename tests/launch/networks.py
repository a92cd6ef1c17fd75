"""Hosts with networks of their own on this machine: each has an eth0 on one bridge, and a link that can be lost."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path


def why_not() -> str | None:
    """Why there can be no such hosts here; None: there can."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nsenter", "unshare"))):
        return "network namespaces need root, ip, nsenter and unshare"
    return None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@dataclass(frozen=True)
class Member:
    """A host on the bridge. `enter` begins a command that runs on it, with its host name."""

    name: str
    address: str
    gateway: str
    link: str

    @property
    def enter(self) -> tuple[str, ...]:
        command = f'hostname {self.name}; exec "$@"'
        return ("nsenter", f"--net=/run/netns/{self.name}", "unshare", "--uts", "bash", "-c", command, "bash")

    def lose_link(self) -> None:
        """Nothing reaches the host, and nothing leaves it, from now on."""
        _ip("link", "set", self.link, "down")

    def find_link(self) -> None:
        _ip("link", "set", self.link, "up")


@contextmanager
def locked(name: str, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a name among the test processes of this machine; yields whether it is held."""
    with (Path(tempfile.gettempdir()) / f"trainkit-{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def _subnet() -> Iterator[str]:
    """A subnet that no other test process uses."""
    for number in range(1, 250):
        with locked(f"subnet-{number}", wait=False) as is_free:
            if is_free:
                yield f"10.93.{number}"
                return
    raise RuntimeError("all subnets are in use")


@contextmanager
def bridged(num_hosts: int) -> Iterator[list[Member]]:
    """Hosts `.11`, `.12` and so on of a subnet, in which this machine is `.1`."""
    prefix = f"tk{os.getpid() % 100000}"
    with _subnet() as subnet, ExitStack() as stack:
        bridge = f"{prefix}b{subnet.rpartition('.')[2]}"
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "delete", bridge)
        _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        yield [stack.enter_context(_member(f"{prefix}n{n}", n, subnet, bridge)) for n in range(1, num_hosts + 1)]


@contextmanager
def _member(name: str, number: int, subnet: str, bridge: str) -> Iterator[Member]:
    link = f"{bridge}v{number}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", link, "master", bridge, "up")
        address = f"{subnet}.1{number}"
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        yield Member(name=name, address=address, gateway=f"{subnet}.1", link=link)
    finally:
        subprocess.run(["ip", "link", "delete", link], check=False)  # not there where the lines above have failed
        _ip("netns", "delete", name)
