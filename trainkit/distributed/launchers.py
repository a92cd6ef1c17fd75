"""Launchers other than torchrun: what srun, mpirun, mpiexec and jsrun tell a process about its job."""

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from trainkit.distributed import nodes
from trainkit.errors import ClusterError

JOINED = "TRAINKIT_LAUNCHER"
"""Set beside RANK where the variables of a launcher were translated, so that a process of the job counts as such."""


@dataclass(frozen=True)
class Launcher:
    """The variables that a launcher sets for each process.

    Args:
        name: for messages.
        rank: the variable with the rank of the process.
        size: with the number of processes of the job.
        local_rank: with the rank among the processes of the host.
        local_size: with the number of processes of the job on the host; Slurm's is a list over the hosts.
        job: those that number the job, the same for all its processes; the first that is set counts.
    """

    name: str
    rank: str
    size: str
    local_rank: str
    local_size: str
    job: tuple[str, ...] = ()

    def num_processes(self, environment: Mapping[str, str]) -> int:
        """The number of processes that the launcher has started; 1 where it has started none."""
        text = environment.get(self.size, "1")
        return int(text) if text.isdecimal() else 1


_SCHEDULED = ("SLURM_JOB_ID", "LSB_JOBID", "PBS_JOBID")
# Slurm comes last: mpirun uses a step of Slurm for its own daemons, whose variables its processes inherit.
LAUNCHERS = (
    Launcher(
        "LSF's jsrun",
        "JSM_NAMESPACE_RANK",
        "JSM_NAMESPACE_SIZE",
        "JSM_NAMESPACE_LOCAL_RANK",
        "JSM_NAMESPACE_LOCAL_SIZE",
        ("LSB_JOBID",),
    ),
    Launcher(
        "Open MPI's mpirun",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        ("OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE", *_SCHEDULED),
    ),
    Launcher("MPI's mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", _SCHEDULED),
    Launcher(
        "Slurm's srun",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_LOCALID",
        "SLURM_STEP_TASKS_PER_NODE",
        ("SLURM_JOB_ID",),
    ),
)


def launcher_of(environment: Mapping[str, str]) -> Launcher | None:
    """The launcher that has started this process as one of several.

    Args:
        environment: of the process.

    Returns:
        The launcher; None for one process, or where RANK and WORLD_SIZE are set, which count more.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return None
    found = [one for one in LAUNCHERS if one.num_processes(environment) > 1]
    # Slurm's pmi2 sets PMI_RANK and PMI_SIZE too, but not the local ones.
    return next((one for one in found if one.local_rank in environment), found[0] if found else None)


def join(environment: MutableMapping[str, str] | None = None) -> None:
    """Sets the variables that torchrun sets, from those of another launcher; does nothing under torchrun, or alone.

    Args:
        environment: changed in place; None: that of this process.

    Raises:
        ClusterError: naming what to set, where the launcher does not tell it.

    Example:
        >>> told = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_ess_base_jobid": "7"}
        >>> told |= {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
        >>> join(told)
        >>> told["RANK"], told["LOCAL_WORLD_SIZE"], told["MASTER_ADDR"]
        ('1', '2', '127.0.0.1')
    """
    environment = os.environ if environment is None else environment
    launcher = launcher_of(environment)
    if launcher is None:
        return
    size = launcher.num_processes(environment)
    try:
        rank, local_rank = int(environment[launcher.rank]), int(environment[launcher.local_rank])
        local_size = _local_size(launcher, environment)
    except (KeyError, ValueError, IndexError) as error:
        raise ClusterError(
            f"{launcher.name} has started {size} processes ({launcher.size}), but {launcher.rank}, "
            f"{launcher.local_rank} and {launcher.local_size} do not tell which this is: set RANK, WORLD_SIZE, "
            f"LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        ) from error
    address = environment.get("MASTER_ADDR") or _address(launcher, environment, is_one_host=local_size == size)
    number = next((environment[name] for name in launcher.job if environment.get(name)), "")
    port = nodes.port_of(number, environment.get("SLURM_STEP_ID", "") if launcher.size.startswith("SLURM") else "")
    if rank == 0:
        _require_here(address, launcher)
    environment.update(
        {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(local_size),
            "MASTER_ADDR": address,
            "MASTER_PORT": environment.get("MASTER_PORT") or str(port),
            JOINED: launcher.name,
        }
    )


def _local_size(launcher: Launcher, environment: Mapping[str, str]) -> int:
    text = environment[launcher.local_size]
    if launcher.size.startswith("SLURM"):
        return nodes.counts(text)[int(environment["SLURM_NODEID"])]
    return int(text)


def _address(launcher: Launcher, environment: Mapping[str, str], *, is_one_host: bool) -> str:
    if is_one_host:
        return "127.0.0.1"
    if (host := nodes.first_of_job(environment)) is not None:
        return nodes.address_of(host)
    # tcp://192.0.2.2,10.0.0.2:33521 of the mpirun process, which is on the host of rank 0 unless that was left out.
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "").partition("tcp://")[2].split(";")[0]
    if uri and launcher.name.startswith("Open MPI"):
        return uri.rpartition(":")[0].split(",")[0]
    raise ClusterError(
        f"{launcher.name} has started {launcher.num_processes(environment)} processes on several hosts, and does "
        f"not tell where rank 0 is: set MASTER_ADDR to the name or address of its host, and MASTER_PORT to a free port"
    )


def _require_here(address: str, launcher: Launcher) -> None:
    """Checks that rank 0 is on the host where the others will look for it, which would otherwise wait for minutes."""
    try:
        family, kind, protocol, _, found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(found)
    except OSError as error:
        raise ClusterError(
            f"{launcher.name} has started rank 0 on {socket.gethostname()}, which is not MASTER_ADDR={address} "
            f"({error.strerror or error}): set MASTER_ADDR to the address of that host"
        ) from error
