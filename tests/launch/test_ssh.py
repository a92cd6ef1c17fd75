"""`trainkit launch --hosts`: two real sshd; what is told before training, and that nothing is left, whatever dies."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.jobs import ROOT, TOY, environment, run
from tests.launch.sshd import Network, require_sshd
from trainkit.health.signals import REQUEUE_FILE
from trainkit.launcher.remote_job import SAVED

LIMIT_S = 240.0
NOTHING_LEFT_S = 10.0
MARK = "TRAINKIT_TEST_MARK"  # carried to the hosts, so that every process of a job has it
ENDLESS = ("recipe.num_steps=1000000", "save_every=1000000", "evaluate_every=1000000", "log_every=10")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    require_sshd()
    return Network(tmp_path_factory.mktemp("ssh"))


@pytest.fixture
def hosts(network):
    with network.host("node1", "127.0.0.2") as first, network.host("node2", "127.0.0.3") as second:
        yield first, second
        network.config.write_text("")


class Launched:
    """`trainkit launch` on two hosts of one process each."""

    def __init__(self, network, arguments, *, cwd=ROOT, hosts="node1:1,node2:1", env=None):
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        own = {**environment(), MARK: self.mark, **(env or {})}
        command = [sys.executable, "-m", "trainkit.cli", "launch", "--ssh", network.ssh, "--hosts", hosts, *arguments]
        self.process = subprocess.Popen(
            command, cwd=cwd, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self):
        try:
            return self.process.communicate(timeout=LIMIT_S)
        finally:
            self.process.kill()

    def processes(self):
        """Those of the job on any host, and the clients of ssh."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if self._is_of_job(path)]

    def _is_of_job(self, path):
        try:
            return f"{MARK}={self.mark}".encode() in (path / "environ").read_bytes().split(b"\0")
        except OSError:
            return False  # it has ended


def train(network, run_dir, *overrides, options=(), **kept):
    return Launched(network, [*options, *TOY[:2], "--", TOY[2], f"run_dir={run_dir}", *overrides], **kept)


def wait_for(condition, job):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert job.process.poll() is None, job.process.communicate()
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def require_nothing_left(job, hosts):
    """Within ten seconds there is neither a process of the job nor one that sshd has started."""
    deadline = time.monotonic() + NOTHING_LEFT_S
    while left := [*job.processes(), *(pid for host in hosts for pid in host.processes())]:
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
        time.sleep(0.05)


def is_training(run_dir):
    path = run_dir / "metrics.jsonl"
    return path.is_file() and '"training"' in path.read_text()


def losses(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "training"]


# -- to the end --------------------------------------------------------------------------------------------------------


def test_two_hosts_train_as_one_process(network, hosts, tmp_path):
    job = train(network, tmp_path / "two", "precision=fp64", env={"WANDB_API_KEY": "5ecret"})
    wait_for(lambda: is_training(tmp_path / "two"), job)
    commands = subprocess.run(["ps", "-eo", "args", "-ww"], capture_output=True, text=True, check=True).stdout
    assert "trainkit.cli" in commands and "5ecret" not in commands
    out, err = job.finish()
    assert job.process.returncode == 0, out + err
    require_nothing_left(job, hosts)
    lines = [*out.splitlines(), *(line for line in err.splitlines() if not line.startswith("trainkit: "))]
    assert lines and {line.partition(" ")[0] for line in lines} <= {"[node1]", "[node2]"}
    assert len(re.findall("^trainkit: node[12]: python .* trainkit .*; .*1 process$", err, re.M)) == 2
    assert len(re.findall(r"^\[node[12]\] machines: ", out, re.M)) >= 1
    run([*TOY, f"run_dir={tmp_path / 'one'}", "precision=fp64"])
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-9)


# -- the end of one is the end of all ----------------------------------------------------------------------------------


def _workers(host):
    return [pid for pid in host.processes() if b"TORCHELASTIC_RUN_ID=" in Path(f"/proc/{pid}/environ").read_bytes()]


def _agent(host):
    return next(pid for pid in host.processes() if "\0agent\0" in Path(f"/proc/{pid}/cmdline").read_text())


def _kill(what, job, host):
    if what == "host":
        host.kill()
    else:
        pid = {"client": lambda: job.process.pid, "agent": lambda: _agent(host), "rank": lambda: _workers(host)[0]}
        os.kill(pid[what](), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["client", "host", "agent", "rank"])
def test_nothing_is_left_when_one_is_killed(what, network, hosts, tmp_path):
    job = train(network, tmp_path / "run", *ENDLESS, options=["--max-restarts=0"])
    wait_for(lambda: is_training(tmp_path / "run"), job)
    assert all(_workers(host) for host in hosts)
    _kill(what, job, hosts[1])
    require_nothing_left(job, hosts)
    out, err = job.finish()
    code, says = {
        "client": (-signal.SIGKILL, ""),
        "host": (1, "trainkit: error: node2: lost: "),
        "agent": (137, "trainkit: node2: the agent was killed by SIGKILL: ending the other hosts"),
        "rank": (137, ": the agent has ended with exit code 137: ending the other hosts"),
    }[what]
    assert (job.process.returncode, says in err) == (code, True), out + err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_on_all_hosts(number, network, hosts, tmp_path):
    job = train(network, tmp_path / "run", *ENDLESS)
    wait_for(lambda: is_training(tmp_path / "run"), job)
    job.process.send_signal(number)
    out, err = job.finish()
    require_nothing_left(job, hosts)
    assert f"trainkit: {number.name}: every host ends after the same step and saves" in err
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert f"{int(saved.name.removeprefix('step_'))}" in out + err
    assert (tmp_path / "run" / REQUEUE_FILE).exists() == (number == signal.SIGTERM)
    assert job.process.returncode == (SAVED if number == signal.SIGTERM else 130), out + err


# -- the check of machines ---------------------------------------------------------------------------------------------


def test_the_check_measures_all_hosts(network, hosts):
    job = Launched(network, ["--check", "--device", "cpu"], hosts="node1:1,node2:1")
    out, err = job.finish()
    require_nothing_left(job, hosts)
    assert job.process.returncode == 0, out + err
    assert re.search(r"^\[node[12]\] 2 ranks on 2 hosts: CPU$", out, re.M)
    assert re.search(r"^\[node[12]\] links between hosts: \S+ GB/s \(median of 2\)", out, re.M)


def test_the_check_refuses_below_a_share(network, hosts):
    job = Launched(network, ["--check", "--device", "cpu", "--at-least", "1"], hosts="node1:1,node2:1")
    out, err = job.finish()
    assert job.process.returncode == 1, out + err  # of two that are measured one is the slower
    (line,) = [line for line in err.splitlines() if "a run should not start on these machines" in line]
    assert re.match(
        r"\[node[12]\] trainkit: error: rank [01] on node[12] is (slow: [01]\.\d\d of the median|a slow link)", line
    )
    assert "Traceback" not in err
