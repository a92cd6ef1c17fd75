"""Hosts that say nothing any more: a lost link of one of two real networks, and what counts as silence."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch.distributed as dist

from benchmarks.processes import free_port
from tests.jobs import ROOT, TOY, descendants, environment
from tests.launch.networks import bridged, why_not
from trainkit.distributed import silence
from trainkit.distributed.silence import SILENT_S, Beats

JOB = (*TOY, "recipe.num_steps=1000000", "log_every=1", "save_every=20", "evaluate_every=null", "device=cpu")


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("trainkit.distributed.silence.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def three(monkeypatch):
    """The beats of three hosts, of which the first holds the store."""
    monkeypatch.setattr(silence, "_end_after_silence", lambda port: True)
    store = dist.HashStore()
    return [Beats(store, number, 3, 0) for number in range(3)]


def test_a_host_is_silent_after_its_last_beat(three, clock):
    first, second, third = three
    for _ in range(10):
        clock[0] += 2
        assert [one.silent() for one in three] == [None] * 3
    last = clock[0]
    while (name := first.silent()) is None:
        second.silent()
        clock[0] += 1
        assert clock[0] < last + 60
    assert SILENT_S < clock[0] - last <= SILENT_S + 4
    assert name == os.uname().nodename
    assert third.silent() is None  # it stood still itself


def test_one_that_stood_still_does_not_judge(three, clock):
    for one in three:
        one.silent()
    clock[0] += 100
    assert [one.silent() for one in three] == [None] * 3
    for _ in range(SILENT_S // 2 + 1):
        clock[0] += 2
        assert three[0].silent() is None
    clock[0] += 2
    assert three[0].silent() == os.uname().nodename


def test_one_host_alone_says_nothing():
    store = dist.HashStore()
    assert Beats(store, 0, 1, 0).silent() is None
    assert not store.check(["trainkit/beat/0"])


AGENT = """
import sys
from trainkit.distributed import host_agent, silence
from trainkit.distributed.host import Host
silence.SILENT_S = 3
number, port = map(int, sys.argv[1:])
host = Host(
    processes=1, min_nodes=2, max_nodes=2, endpoint=f"127.0.0.1:{port}", is_first=number == 0, job="job"
)
sys.exit(host_agent.run(host, ["-c", "import os, time; time.sleep(9 * (os.environ['RANK'] == os.environ['LATE']))"]))
"""


@pytest.mark.parametrize("late", [0, 1])
def test_a_host_that_waits_for_the_end_of_others_is_not_silent(late):
    port = free_port()
    words = [[sys.executable, "-c", AGENT, str(number), str(port)] for number in range(2)]
    pipe, out, variables = subprocess.PIPE, subprocess.STDOUT, {**environment(), "LATE": str(late)}
    hosts = [subprocess.Popen(one, cwd=ROOT, env=variables, stdout=pipe, stderr=out, text=True) for one in words]
    try:
        outputs = [host.communicate(timeout=120)[0] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], outputs
    assert not any("has said nothing" in text for text in outputs), outputs


def _steps(run_dir):
    path = run_dir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def _until(condition, agents, timeout_s):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, [agent.poll() for agent in agents]
        time.sleep(0.1)


@pytest.mark.slow
def test_a_lost_link_ends_one_host_and_the_other_goes_on(tmp_path):
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    run_dir, agents = tmp_path / "run", list[subprocess.Popen[str]]()
    command = [sys.executable, "-m", "trainkit.cli", "agent", "--nnodes=1:2", "--nproc-per-node=1", "--rdzv-id=lost"]
    variables = {**environment(), "GLOO_SOCKET_IFNAME": "eth0"}
    pipe, out = subprocess.PIPE, subprocess.STDOUT
    with bridged(2) as hosts:
        try:
            for number, host in enumerate(hosts):
                where = [f"--node-rank={number}", f"--rdzv-endpoint={hosts[0].address}:29400"]
                words = [*host.enter, *command, *where, *JOB, f"run_dir={run_dir}"]
                agents.append(subprocess.Popen(words, cwd=ROOT, env=variables, stdout=pipe, stderr=out, text=True))
            _until(lambda: (_steps(run_dir) or [0])[-1] > 50, agents, 120)
            hosts[1].lose_link()
            began, known = time.monotonic(), _steps(run_dir)[-1]
            lost = agents[1].communicate(timeout=SILENT_S + 60)[0]
            print(f"{time.monotonic() - began:.1f} s until the lost host has ended")
            assert agents[1].returncode == 1
            assert "trainkit: error: lost the first host of the job (--rdzv-endpoint)" in lost, lost
            _until(lambda: _steps(run_dir)[-1] > known + 50, agents[:1], 120)
            print(f"{time.monotonic() - began:.1f} s until the other trains again")
            agents[0].send_signal(signal.SIGTERM)
            told = agents[0].communicate(timeout=60)[0]
        finally:
            for agent in agents:
                for pid in (*descendants(agent.pid), agent.pid):
                    if agent.poll() is None:
                        os.kill(pid, signal.SIGKILL)
    assert agents[0].returncode == os.EX_TEMPFAIL, told
    assert f"has said nothing for {SILENT_S} s: it or its link is lost; all processes are restarted (2 left)" in told
    history = json.loads((run_dir / "manifest.json").read_text())["history"]
    assert [start["num_ranks"] for start in history] == [2, 1]
