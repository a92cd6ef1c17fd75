"""`trainkit launch` on hosts with networks of their own, whose names no host can resolve; and a link that is lost."""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.launch.networks import bridged, why_not
from tests.launch.sshd import Network, require_sshd
from tests.launch.test_ssh import ENDLESS, is_training, losses, require_nothing_left, train, wait_for

ETH0 = {"GLOO_SOCKET_IFNAME": "eth0"}
SILENT_S = 20.0


@pytest.fixture
def machines(tmp_path_factory):
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    require_sshd()
    network = Network(tmp_path_factory.mktemp("ssh"))
    with bridged(2) as members, ExitStack() as stack:
        hosts = [
            stack.enter_context(network.host(f"node{number}", member.address, before=member.enter))
            for number, member in enumerate(members, 1)
        ]
        yield network, hosts, members


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
    network, (first, second), (_, member) = machines
    done = train(network, tmp_path / "done", env=ETH0)
    out, err = done.finish()
    assert done.process.returncode == 0, out + err
    assert len(losses(tmp_path / "done")) > 0
    job = train(network, tmp_path / "lost", *ENDLESS, env=ETH0)
    wait_for(lambda: is_training(tmp_path / "lost"), job)
    began = time.monotonic()
    member.lose_link()
    out, err = job.finish()
    assert job.process.returncode == 1 and "trainkit: error: node2: lost: " in err, out + err
    assert time.monotonic() - began < SILENT_S + 30  # of silence, and to end the others
    deadline = time.monotonic() + SILENT_S + 10
    while started_by(second):  # it has heard nothing of the client either
        assert time.monotonic() < deadline
        time.sleep(0.1)
    require_nothing_left(job, [first])
