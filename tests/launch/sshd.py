"""Servers of ssh on loopback addresses, as the hosts of a job: own keys, ports and configuration in a folder."""

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from benchmarks.processes import free_port
from tests.jobs import descendants

SSHD = Path("/usr/sbin/sshd")


@dataclass
class Server:
    """A host: its name for ssh, and the process of its sshd, whose descendants are all that runs on the host."""

    name: str
    address: str
    process: "subprocess.Popen[bytes]"

    def processes(self) -> list[int]:
        return descendants(self.process.pid)

    def kill(self) -> None:
        """As a power cut: every process of the host at once."""
        for pid in (self.process.pid, *self.processes()):
            os.kill(pid, signal.SIGKILL)


@cache
def require_sshd() -> None:
    """Skips the test where there is no sshd and this process may not install Debian's, without a service."""
    if not SSHD.is_file() and os.geteuid() == 0 and shutil.which("apt-get"):
        own = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        apt = "apt-get -o DPkg::Lock::Timeout=100"  # another test may install the same
        install = f"{apt} install --yes --no-install-recommends openssh-server openssh-client"
        command = ["sh", "-c", f"{install} || {{ {apt} update && {install}; }}"]
        subprocess.run(command, env=own, capture_output=True, timeout=240, check=False)
    if not SSHD.is_file():
        pytest.skip("sshd is not installed: apt-get install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd as root insists on it


class Network:
    """A folder with the keys of a user and of hosts, and the configuration of ssh that names the hosts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "ssh_config"
        _key(directory / "user")
        _key(directory / "stranger")
        self.config.touch()

    @property
    def ssh(self) -> str:
        """For --ssh."""
        return f"ssh -F {shlex.quote(str(self.config))}"

    def add(self, name: str, address: str, port: int, key: str = "user") -> None:
        """Lets ssh know a host."""
        own = {
            "HostName": address,
            "Port": port,
            "User": getpass.getuser(),
            "IdentityFile": self.directory / key,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.directory / "known_hosts",
        }
        with self.config.open("a") as file:
            file.write(f"Host {name}\n" + "".join(f"  {option} {value}\n" for option, value in own.items()))

    @contextmanager
    def host(self, name: str, address: str, *options: str, before: Sequence[str] = ()) -> Iterator[Server]:
        """A host in the context. `options` are those of sshd; `before` is a command that starts it."""
        port = free_port()
        host_key = _key(self.directory / f"host_{name}")
        with (self.directory / "known_hosts").open("a") as file:
            file.write(f"[{address}]:{port} {host_key.with_suffix('.pub').read_text()}")
        self.add(name, address, port)
        settings = [
            *(f"Port={port}", f"ListenAddress={address}", f"HostKey={host_key}", "PidFile=none", "StrictModes=no"),
            *(f"AuthorizedKeysFile={self.directory / 'user.pub'}", "UsePAM=no", "PasswordAuthentication=no"),
            *("KbdInteractiveAuthentication=no", "MaxStartups=100", *options),
        ]
        command = [*before, str(SSHD), "-D", "-e", "-f", os.devnull, *(f"-o{setting}" for setting in settings)]
        with (self.directory / f"log_{name}").open("wb") as log:
            process = subprocess.Popen(command, stderr=log)
        server = Server(name, address, process)
        try:
            _wait_for_port(address, port, process)
            yield server
        finally:
            for pid in (*server.processes(), process.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait()


def _key(path: Path) -> Path:
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def _wait_for_port(address: str, port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((address, port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "sshd did not start"
            time.sleep(0.02)
