"""`trainkit launch` on hosts with networks of their own, whose names no host can resolve; and a link that is lost."""

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.launch.sshd import Network, require_sshd
from tests.launch.test_ssh import ENDLESS, is_training, losses, require_nothing_left, train, wait_for

PREFIX, SUBNET = f"tk{os.getpid() % 100000}", "10.93.7"
ETH0 = {"GLOO_SOCKET_IFNAME": "eth0"}
SILENT_S = 20.0


def ip(*words):
    subprocess.run(["ip", *words], check=True)


@contextmanager
def machine(network, number):
    """A host with its own name, and its own network: an eth0 on the bridge of the test."""
    name, link = f"{PREFIX}n{number}", f"{PREFIX}v{number}"
    ip("netns", "add", name)
    try:
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", link, "master", f"{PREFIX}b", "up")
        address = f"{SUBNET}.1{number}"
        ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        enter = ("nsenter", f"--net=/run/netns/{name}", "unshare", "--uts", "bash", "-c")
        with network.host(f"node{number}", address, before=(*enter, f'hostname {name}; exec "$@"', "bash")) as host:
            yield host, link
    finally:
        subprocess.run(["ip", "link", "delete", link], check=False)  # not there where the lines above have failed
        ip("netns", "delete", name)


@pytest.fixture
def machines(tmp_path_factory):
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nsenter", "unshare"))):
        pytest.skip("network namespaces need root, ip, nsenter and unshare")
    require_sshd()
    network = Network(tmp_path_factory.mktemp("ssh"))
    ip("link", "add", f"{PREFIX}b", "type", "bridge")
    try:
        ip("addr", "add", f"{SUBNET}.1/24", "dev", f"{PREFIX}b")
        ip("link", "set", f"{PREFIX}b", "up")
        with machine(network, 1) as first, machine(network, 2) as second:
            yield network, first, second
    finally:
        ip("link", "delete", f"{PREFIX}b")


def started_by(host):
    """What runs on a host apart from sshd itself, which waits for the client that it cannot hear."""
    return [pid for pid in host.processes() if not command(pid).startswith("sshd")]


def command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except FileNotFoundError:
        return "sshd"  # it has ended


@pytest.mark.slow
def test_hosts_meet_at_addresses_and_a_lost_link_ends_both(machines, tmp_path):
    network, (first, _), (second, link) = machines
    done = train(network, tmp_path / "done", env=ETH0)
    out, err = done.finish()
    assert done.process.returncode == 0, out + err
    assert len(losses(tmp_path / "done")) > 0
    job = train(network, tmp_path / "lost", *ENDLESS, env=ETH0)
    wait_for(lambda: is_training(tmp_path / "lost"), job)
    began = time.monotonic()
    ip("link", "set", link, "down")
    out, err = job.finish()
    assert job.process.returncode == 1 and "trainkit: error: node2: lost: " in err, out + err
    assert time.monotonic() - began < SILENT_S + 30  # of silence, and to end the others
    deadline = time.monotonic() + SILENT_S + 10
    while started_by(second):  # it has heard nothing of the client either
        assert time.monotonic() < deadline
        time.sleep(0.1)
    require_nothing_left(job, [first])
