"""What `trainkit launch --hosts` tells of hosts before it trains, one line each; two real sshd."""

import asyncio
import os
import socket
import subprocess
import sys

import pytest

from tests.jobs import ROOT, environment
from tests.launch.sshd import Network, require_sshd
from trainkit.launcher.checks import Verdict, Wanted, check
from trainkit.launcher.hosts import Host
from trainkit.launcher.ssh import Connection, HostError

OPTIONS = ("--config-dir", str(ROOT / "tests" / "user" / "conf"))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    require_sshd()
    network = Network(tmp_path_factory.mktemp("ssh"))
    with network.host("node1", "127.0.0.2"), network.host("node2", "127.0.0.3"):
        yield network


def launch(network, *arguments, hosts="node1:1,node2:1", env=None, run_dir="null"):
    """The exit code, what it prints, and its lines on stderr."""
    words = ["launch", "--ssh", network.ssh, "--hosts", hosts, *OPTIONS, *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "trainkit.cli", *words, "--", "experiment=toy_short", f"run_dir={run_dir}"],
        env={name: value for name, value in {**environment(), **(env or {})}.items() if value is not None},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.splitlines()


def errors(lines):
    return [line.removeprefix("trainkit: error: ") for line in lines if line.startswith("trainkit: error: ")]


def test_another_version_is_one_line_before_training(network, tmp_path):
    other = tmp_path / "torch-2.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.1\n")
    bare = {"PYTHONPATH": None}  # what a host sets counts where nothing is carried
    with network.host("node3", "127.0.0.4", f"SetEnv=PYTHONPATH={tmp_path}"):
        code, out, lines = launch(network, "--directory", str(ROOT), hosts="node1:1,node3:1", env=bare)
    assert (code, out) == (2, "")
    (line,) = errors(lines)
    assert line.startswith("node3: torch 2.1, here 2.") and line.endswith("install the same version on all hosts")
    assert len([one for one in lines if "waiting for" not in one]) == 2, "a line for each host"


def test_hosts_that_cannot_be_reached_are_all_named(network):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    network.add("gone", "127.0.0.1", port)
    network.add("locked", "127.0.0.2", _port_of(network, "node1"), key="stranger")
    code, _, lines = launch(network, hosts="node1:1,gone:1,locked:1,nowhere.invalid:1")
    assert code == 2
    gone, locked, nowhere = errors(lines)
    assert gone == f"gone: connect to host 127.0.0.1 port {port}: Connection refused"
    assert locked.startswith("locked: ") and "Permission denied (publickey)." in locked
    assert locked.endswith("It must let you in without a password: `ssh-copy-id locked`")
    assert nowhere.startswith("nowhere.invalid: Could not resolve hostname")


def _port_of(network, name):
    asked = subprocess.run([*network.ssh.split(), "-G", name], capture_output=True, text=True, check=True)
    return int(next(line for line in asked.stdout.splitlines() if line.startswith("port ")).split()[1])


def test_python_and_the_directory_must_be_there(network, tmp_path):
    code, _, lines = launch(network, "--python", "/none/python")
    assert code == 2
    assert len(errors(lines)) == 2 and all("--python names Python's path there" in line for line in errors(lines))
    code, _, lines = launch(network, "--directory", f"{tmp_path}/none")
    assert code == 2
    text = f"there is no folder {tmp_path}/none, the working directory (--directory names it)"
    assert errors(lines) == [f"node1: {text}", f"node2: {text}"]


def test_a_port_that_is_taken(network):
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, lines = launch(network, "--rdzv-endpoint", f"127.0.0.2:{port}")
    assert code == 2
    assert errors(lines) == [f"node1: port {port} cannot be used: Address already in use (--rdzv-endpoint HOST:PORT)"]


def test_an_address_that_the_others_do_not_reach(network):
    code, _, lines = launch(network, "--rdzv-endpoint", "nowhere.invalid")
    (line,) = errors(lines)
    assert code == 2 and line.startswith("node2: cannot reach node1 at nowhere.invalid, port ")


def test_a_run_directory_that_is_not_shared(network, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("a host with a file system of its own needs root: unshare --mount")
    mine = f'mount -t tmpfs none {tmp_path}; exec "$@"'
    before = ("unshare", "--mount", "bash", "-c", mine, "bash")
    with network.host("node4", "127.0.0.5", before=before):
        code, _, lines = launch(network, hosts="node1:1,node4:1", run_dir=f"{tmp_path}/runs/%Y")
    assert code == 2
    assert errors(lines) == [
        f"node4: does not see a file that node1 wrote into {tmp_path}: run_dir={tmp_path}/runs: must be on a file "
        "system that all hosts share"
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_that_cannot_be_made(network):
    code, _, lines = launch(network, run_dir="/proc/runs")
    assert code == 2
    (line,) = errors(lines)
    assert line.startswith("node1: run_dir=/proc/runs: /proc cannot be written: ")


def test_a_wrong_configuration_is_found_before_any_host(network):
    code, _, lines = launch(network, "recipe.num_stepps=1", hosts="nowhere.invalid")
    assert code == 2
    (line,) = errors(lines)
    assert line.startswith("recipe.num_stepps") and "num_steps" in line


def test_a_dry_run_connects_to_nobody(network):
    code, out, lines = launch(network, "--dry-run", hosts="nowhere.invalid:3", env={"WANDB_API_KEY": "5ecret"})
    assert (code, lines) == (0, [])
    assert "WANDB_API_KEY" in out and "5ecret" not in out
    assert "--nproc-per-node=3" in out and "experiment=toy_short run_dir=null" in out


# -- what a test cannot set up on hosts --------------------------------------------------------------------------------


class Answers(Connection):
    """A host that answers as it is told."""

    def __init__(self, name, slots=None, ahead_s=0.0, **facts):
        super().__init__(Host(name, slots), "python", ["ssh"], asyncio.Queue())
        self.ahead_s, self.facts, self.address = ahead_s, facts, "10.0.0.1"

    async def open(self):
        if "lost" in self.facts:
            raise HostError(self.host.name, "lost")

    async def ask(self, do, timeout_s=60.0, **values):
        import time

        from trainkit.launcher.facts import facts

        answers = {"clock": {"time": time.time() + self.ahead_s}, "prepare": {**facts(), **self.facts}}
        return {**answers, "leave": {"path": "/r/x"}, "see": {"seen": True}, "listen": {"port": 29400}}.get(do, {})


def verdicts(*connections, **wanted) -> list[Verdict]:
    told: list[str] = []
    return asyncio.run(check(connections, Wanted(directory="/", environment={}, **wanted), told.append))[0]


def test_clocks_and_spare_gpus_are_warnings():
    first, second = verdicts(Answers("a", num_gpus=8), Answers("b", 4, ahead_s=-60.0, num_gpus=8))
    assert (first.errors, first.warnings, first.num_processes) == ([], [], 8)
    assert (second.errors, second.num_processes) == ([], 4)
    assert second.warnings == ["its clock is 60 s behind", "has 8 GPUs, of which 4 are used"]
    assert "8 GPUs, 4 processes" in second.lines()[0] and second.lines()[1].startswith("warning: b: its clock")


@pytest.mark.parametrize(
    ("device", "slots", "num_gpus", "error"),
    [
        ("auto", 9, 8, "9 processes and 8 GPUs: give it 8, or device=cpu"),
        ("cuda", 1, 0, "device=cuda, and it has no GPU"),
        ("auto", 1, 0, "it has no GPU, and a has: leave it out, or use device=cpu"),
    ],
)
def test_gpus_that_do_not_fit(device, slots, num_gpus, error):
    first, second = verdicts(Answers("a", num_gpus=8), Answers("b", slots, num_gpus=num_gpus), device=device)
    assert (first.errors, second.errors) == ([], [error])
    assert second.lines() == [f"error: b: {error}"]


def test_trainkit_with_other_files_and_a_lost_host():
    first, second = verdicts(Answers("a", source="0000"), Answers("b", lost=True))
    assert "has other files (0000) than here" in first.errors[0]
    assert second.errors == ["lost"]


def test_what_is_waited_for_is_said():
    class Slow(Answers):
        async def open(self):
            await asyncio.sleep(2.5)

    told: list[str] = []
    wanted = Wanted(directory="/", environment={})
    asyncio.run(check([Answers("a"), Slow("b")], wanted, told.append))
    assert told == ["waiting for b to be reached and examined ..."]
