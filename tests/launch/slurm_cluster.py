"""A Slurm of three nodes on this machine: each has a network of its own, and a host name that Slurm does not know."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from benchmarks.processes import free_port
from tests.launch import networks
from tests.present import present

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
PACKAGES = (
    *("slurm-wlm", "slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge"),
    *("openmpi-bin", "mpich"),
)
PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "munged", "mpirun.openmpi", "mpiexec.mpich")
NODES = ("c1", "c2", "c3")
CONF = """\
ClusterName=ci
FirstJobId={first_job}
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={state}/munge/munge.socket
StateSaveLocation={state}/state
SlurmdSpoolDir={state}/spool/%n
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/%n.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SlurmdTimeout=6
MessageTimeout=3
InactiveLimit=0
MinJobAge=3600
KillWait=30
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=c[1-3] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=c[1-3] MaxTime=INFINITE State=UP PriorityTier=10
"""


def why_not() -> str | None:
    """Why there can be no Slurm here, after having installed it where that is possible; None: there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a Slurm of three nodes needs root on Linux"
    if (reason := networks.why_not()) is not None:
        return reason
    if all(map(shutil.which, PROGRAMS)):
        return None
    if shutil.which("apt-get") is None:
        return f"Slurm is not installed: its Debian packages are {' '.join(PACKAGES)}"
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES]
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-q"], install):
        done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=300, check=False)
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"apt-get install {' '.join(PACKAGES)}: {done.stderr.strip()[-200:]}; no {missing}" if missing else None


class Cluster:
    """The commands of Slurm, in a cluster that runs. `environment` is that of jobs, too."""

    def __init__(self, state: Path, hosts: Sequence[networks.Member]) -> None:
        self.state = state
        self.hosts = hosts
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PET_", "WANDB_"))}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME"):
            kept.pop(name, None)
        self.environment = {
            **kept,
            "SLURM_CONF": str(state / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "PET_NPROC_PER_NODE": "1",
            "WANDB_MODE": "offline",
        }

    def run(
        self, *command: str, timeout_s: float = 120.0, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command, in the root of the checkout."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def submit(self, output: Path, *command: str) -> str:
        """The number of a job of `sbatch`, whose lines are appended to `output`."""
        done = self.run("sbatch", "--parsable", f"--output={output}", *command)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        text = self.run("scontrol", "--oneliner", "show", "job", number).stdout
        return dict(field.partition("=")[::2] for field in text.split())

    def wait(self, number: str, *states: str, timeout_s: float = 120.0) -> dict[str, str]:
        """The job, once it is in one of the states."""
        return present(wait_for(lambda: self._in(number, states), timeout_s, f"job {number} in {states}"))

    def _in(self, number: str, states: Sequence[str]) -> dict[str, str] | None:
        job = self.job(number)
        return job if job["JobState"] in states else None

    def release(self, number: str) -> None:
        """Starts a job again that was queued again: Slurm would wait for 2 minutes.

        One that starts within the second of its requeue fails, since its credential has been revoked.
        """
        self.wait(number, "PENDING")
        self.run("scontrol", "update", f"jobid={number}", "starttime=now+3")

    def cancel_all(self) -> None:
        """Ends all jobs, and waits until all nodes are free."""
        numbers = self.run("squeue", "-h", "-o", "%A").stdout.split()
        if numbers:
            self.run("scancel", "--signal=KILL", "--full", *numbers)
            self.run("scancel", *numbers)
        wait_for(self._all_idle, 60.0, "idle nodes")

    def _all_idle(self) -> bool:
        return self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T").stdout.split() == ["idle"] * len(NODES)

    def kill_node(self, number: int) -> None:
        """SIGKILL to all processes of a node, as if it lost its power."""
        for pid in self._processes(number):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def trains(self, number: int) -> bool:
        """Whether an agent or a rank runs on a node."""
        found = b""
        for pid in self._processes(number):
            with suppress(OSError):  # it has ended
                found += Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"python" in found

    def _processes(self, number: int) -> list[int]:
        """Those that have the host name of the node."""
        slurmd = (self.state / f"{NODES[number]}.pid").read_text().strip()
        own, found = Path(f"/proc/{slurmd}/ns/uts").readlink(), []
        for path in Path("/proc").glob("[0-9]*/ns/uts"):
            with suppress(OSError):  # it has ended
                if path.readlink() == own:
                    found.append(int(path.parts[2]))
        return found

    def start_node(self, number: int) -> None:
        """Starts the slurmd of a node."""
        command = ["slurmd", "-f", f"{self.state}/slurm.conf", "-N", NODES[number]]
        subprocess.run([*self.hosts[number].enter, *command], check=True, env=self.environment)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster that runs in the context. Other test processes may have theirs at the same time."""
    state = Path(tempfile.mkdtemp(prefix="trainkit_slurm_"))
    with networks.bridged(len(NODES)) as hosts:
        made = Cluster(state, hosts)
        try:
            _start(made)
            yield made
        finally:
            _stop(made)
            shutil.rmtree(state, ignore_errors=True)


def _start(made: Cluster) -> None:
    state = made.state
    for name in ("state", "spool", "munge", *(f"spool/{node}" for node in NODES)):
        (state / name).mkdir()
    state.chmod(0o755)
    nodes = "\n".join(
        f"NodeName={node} NodeHostName={host.name} NodeAddr={host.address} Port={free_port()} CPUs=8 "
        f"Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN"
        for node, host in zip(NODES, made.hosts, strict=True)
    )
    given = {"host": socket.gethostname(), "port": free_port(), "first_job": random.randrange(1000, 1000000)}
    given["address"] = made.hosts[0].gateway
    conf = CONF.format(**given, state=state, nodes=nodes)
    (state / "slurm.conf").write_text(conf)
    # By these gloo finds the hosts; the names of the nodes are known to Slurm only.
    _write_hosts([f"{host.address} {host.name}" for host in made.hosts])
    key = state / "munge" / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    munge = {"key-file": key, "socket": state / "munge/munge.socket", "pid-file": state / "munged.pid"}
    munge |= {"log-file": state / "munged.log", "seed-file": state / "munge/seed"}
    options = [f"--{name}={value}" for name, value in munge.items()]
    subprocess.run(["munged", "--force", *options], check=True, capture_output=True)  # it minds who owns the folders
    subprocess.run(["slurmctld", "-f", str(state / "slurm.conf")], check=True, env=made.environment)
    for number in range(len(NODES)):
        made.start_node(number)
    wait_for(made._all_idle, 60.0, "idle nodes")


def _write_hosts(lines: Sequence[str]) -> None:
    """Ends /etc/hosts with lines of this process, in place of its earlier ones and of those of processes that ended."""
    path, mark = Path("/etc/hosts"), "# trainkit-slurm"

    def is_kept(line: str) -> bool:
        owner = line.partition(mark)[2].strip()
        return not owner or (owner != str(os.getpid()) and _runs(int(owner)))

    with networks.locked("hosts"):
        kept = [line for line in path.read_text().splitlines() if is_kept(line)]
        own = [f"{line} {mark} {os.getpid()}" for line in lines]
        path.write_text("".join(f"{line}\n" for line in (*kept, *own)))  # in place: a container's is a mount


def _stop(made: Cluster) -> None:
    with suppress(AssertionError):
        made.cancel_all()
    pids = [path.read_text().strip() for path in made.state.glob("*.pid")]
    running = [int(pid) for pid in pids if pid]
    for pid in running:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    with suppress(AssertionError):
        wait_for(lambda: not any(map(_runs, running)), 20.0, "the daemons' end")
    for pid in filter(_runs, running):
        os.kill(pid, signal.SIGKILL)
    _write_hosts([])


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def wait_for(condition: Callable[[], T], timeout_s: float, what: str) -> T:
    """What the condition returns, once that is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:.0f} s"
        time.sleep(0.1)
    return found
