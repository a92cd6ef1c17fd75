"""The bed of hosts: links of the rate they are given, bytes that are counted, and nothing left."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks import bed
from benchmarks.bed import Bed, RankError

ROOT = Path(__file__).parents[2]
MBIT_PER_S = 200.0
NUM_BYTES = 4_000_000

pytestmark = pytest.mark.skipif(bed.why_not() is not None, reason=f"no bed of hosts: {bed.why_not()}")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Bed]:
    with Bed(2, MBIT_PER_S) as made:
        yield made


def place() -> tuple[str, int, str, str, int]:
    names = os.environ
    return socket.gethostname(), dist.get_rank(), names["LOCAL_RANK"], names["LOCAL_WORLD_SIZE"], dist.get_world_size()


def send(source: int, target: int, num_bytes: int) -> float:
    """Seconds from before the send to the answer that all has come."""
    there, back = torch.ones(num_bytes // 4), torch.zeros(1)
    begin = time.perf_counter()
    if dist.get_rank() == source:
        dist.send(there, target)
        dist.recv(back, target)
    elif dist.get_rank() == target:
        dist.recv(torch.empty_like(there), source)
        dist.send(back, source)
    return time.perf_counter() - begin


def exchange(num_bytes: int) -> float:
    """Seconds. Gloo needs the receive first: its sign that a receiver is ready waits behind what the pair sends."""
    there, other = torch.ones(num_bytes // 4), 1 - dist.get_rank()
    begin = time.perf_counter()
    works = [dist.irecv(torch.empty_like(there), other), dist.isend(there, other)]
    for work in works:
        assert work is not None
        work.wait()
    return time.perf_counter() - begin


def fail_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ValueError("a fault of this rank")
    dist.barrier()


def end_on(rank: int) -> None:
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def total() -> float:
    value = torch.ones(1)
    dist.all_reduce(value)
    return value.item()


def counted(hosts: Bed, *arguments: int) -> list[int]:
    hosts.run(total)  # makes the connections
    before = hosts.tx_bytes()
    hosts.run(send, *arguments)
    return [b - a for a, b in zip(before, hosts.tx_bytes(), strict=True)]


def network() -> list[str]:
    """The links of this process's own network."""
    return sorted(path.name for path in Path("/sys/class/net").iterdir())


def processes_in(namespaces: list[int]) -> list[str]:
    """The processes in these network namespaces, given as descriptors."""
    wanted, found = {os.fstat(namespace).st_ino for namespace in namespaces}, []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "ns" / "net").stat().st_ino in wanted:
                found.append(process.name)
    return found


def test_ranks_are_placed_by_host(hosts):
    assert hosts.run(place) == [
        *(("bed-host0", 0, "0", "2", 4), ("bed-host0", 1, "1", "2", 4)),
        *(("bed-host1", 2, "0", "2", 4), ("bed-host1", 3, "1", "2", 4)),
    ]


def test_ranks_are_placed_round_robin(hosts):
    assert hosts.run(place, order="round robin") == [
        *(("bed-host0", 0, "0", "2", 4), ("bed-host1", 1, "0", "2", 4)),
        *(("bed-host0", 2, "1", "2", 4), ("bed-host1", 3, "1", "2", 4)),
    ]


def test_bytes_between_hosts_are_counted_where_they_leave(hosts):
    sent, received = counted(hosts, 0, 2, NUM_BYTES)
    assert NUM_BYTES <= sent <= 1.06 * NUM_BYTES
    assert received <= 0.06 * NUM_BYTES


def test_bytes_within_a_host_are_not_counted(hosts):
    assert max(counted(hosts, 0, 1, NUM_BYTES)) <= 0.01 * NUM_BYTES


def test_a_link_has_its_rate_in_each_direction_at_once(hosts):
    least = NUM_BYTES * 8 / (MBIT_PER_S * 1e6)
    hosts.run(exchange, NUM_BYTES, ranks_per_host=1)
    # The best of some: other processes of the machine only make it longer.
    seconds = min(max(hosts.run(exchange, NUM_BYTES, ranks_per_host=1)) for _ in range(4))
    assert least / 1.15 <= seconds <= 1.9 * least, "two directions one after the other take twice as long"


def test_a_rate_is_changed_where_a_host_receives_too(hosts):
    hosts.run(send, 0, 1, NUM_BYTES, ranks_per_host=1)
    hosts.set_rate(1, MBIT_PER_S / 4)
    try:
        slow = hosts.run(send, 0, 1, NUM_BYTES, ranks_per_host=1)[0]
    finally:
        hosts.set_rate(1, None)
        hosts.set_rate(0, None)
    fast = min(hosts.run(send, 0, 1, NUM_BYTES, ranks_per_host=1)[0] for _ in range(4))
    hosts.set_rate(0, MBIT_PER_S)
    hosts.set_rate(1, MBIT_PER_S)
    nominal = NUM_BYTES * 8 / (MBIT_PER_S * 1e6)
    assert slow >= 4 * nominal / 1.15
    assert fast < nominal


def test_a_rank_that_raises_is_reported_and_replaced(hosts):
    with pytest.raises(RankError, match=r"rank 2 of 4:\n(?s:.*)ValueError: a fault of this rank") as caught:
        hosts.run(fail_on, 2)
    assert caught.value.kind == "ValueError"
    assert hosts.run(total) == [4.0] * 4


def test_a_rank_that_is_killed_is_reported(hosts):
    with pytest.raises(RankError, match="rank 3 of 4:\nended without a word"):
        hosts.run(end_on, 3)


def test_late_ranks_are_named(hosts):
    with pytest.raises(TimeoutError, match=r"sleep: ranks \[0, 1, 2, 3\] were not done within 0.5 s"):
        hosts.run(time.sleep, 60, timeout_s=0.5)


def test_a_command_runs_on_each_host(hosts, tmp_path):
    script = "hostname; echo $NAME; pwd; getent hosts bed-host1 | cut -d' ' -f1"
    commands = hosts.start(
        lambda host: ["sh", "-c", script], env={"NAME": "x"}, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    outputs = [command.communicate(timeout=30)[0].split() for command in commands]
    assert outputs == [[f"bed-host{host}", "x", str(tmp_path), hosts.address(1)] for host in range(2)]


def test_a_host_that_is_cut_off_is_silent_and_nothing_is_left():
    before = network()
    with Bed(2, MBIT_PER_S) as made:
        (command, _) = made.start(lambda host: ["sh", "-c", "setsid sleep 1000 & wait"])
        assert made.run(total) == [4.0] * 4
        cutting = threading.Timer(0.2, made.cut, [1])
        cutting.start()
        with pytest.raises(TimeoutError):
            made.run(send, 0, 2, 50 * NUM_BYTES, timeout_s=1.0)  # 8 s at the rate
        cutting.join()
        assert network() == before
        held = [os.open(f"/proc/{pid}/ns/net", os.O_RDONLY) for pid in (made._server.pid, *made._hosts)]
        assert len(processes_in(held)) == 3 + 2 * 2, "server, hosts, and a shell and its child on each host"
    try:
        assert not processes_in(held)
    finally:
        for namespace in held:
            os.close(namespace)
    assert command.returncode == -signal.SIGKILL
    assert network() == before


def test_ranks_of_two_sockets_are_on_one_host():
    with Bed(2, MBIT_PER_S, sockets=2, socket_mbit_per_s=2 * MBIT_PER_S) as made:
        assert made.run(place, ranks_per_host=4)[:5] == [
            *(("bed-host0", rank, str(rank), "4", 8) for rank in range(4)),
            ("bed-host1", 4, "0", "4", 8),
        ]
        for target, by_socket, by_host in (
            (1, [0, 0, 0, 0], [0, 0]),
            (2, [1, 0, 0, 0], [0, 0]),
            (7, [1, 0, 0, 0], [1, 0]),
        ):
            before, before_host = made.tx_bytes(), made.host_tx_bytes()
            made.run(send, 0, target, NUM_BYTES, ranks_per_host=4)
            sent = [b - a for a, b in zip(before, made.tx_bytes(), strict=True)]
            left = [b - a for a, b in zip(before_host, made.host_tx_bytes(), strict=True)]
            assert sent == [pytest.approx(NUM_BYTES * share, abs=0.06 * NUM_BYTES) for share in by_socket], target
            assert left == [pytest.approx(NUM_BYTES * share, abs=0.06 * NUM_BYTES) for share in by_host], target


LITTLE = """
import socket
from benchmarks.bed import Bed
with Bed(2, 100) as made:
    assert "-U" in made._enter(1), "a user namespace"
    assert made.run(socket.gethostname) == ["bed-host0"] * 2 + ["bed-host1"] * 2
    assert min(made.tx_bytes()) > 0, "the ranks have met"
    made.cut(1)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="not root: the other tests are without privileges already")
def test_a_bed_needs_no_privileges():
    # The same user, so that it may read the interpreter; what is left is to map its number in a user namespace.
    drop = ["setpriv", "--inh-caps=-all", "--bounding-set=-all,+setfcap"]
    if shutil.which("setpriv") is None:
        pytest.skip("no program setpriv")
    done = subprocess.run(
        [*drop, sys.executable, "-c", LITTLE],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "no bed of hosts" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
