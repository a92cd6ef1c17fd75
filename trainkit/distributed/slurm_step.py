"""The step of Slurm in which a process runs: what an agent needs to know of it, as text for its options."""

import os
import socket

from trainkit.distributed import nodes
from trainkit.errors import ConfigError


def _is_step() -> bool:
    """Whether srun has started this process; a batch shell has most of the variables of a step, too."""
    return "SLURM_STEP_NODELIST" in os.environ and "SLURM_NODEID" in os.environ and "RANK" not in os.environ


def num_nodes() -> str | None:
    """The number of nodes of the step; None outside of one."""
    return os.environ.get("SLURM_STEP_NUM_NODES") if _is_step() else None


def node_rank() -> str | None:
    """The number of this node in the step; None outside of one. It is right where node and host have two names."""
    return os.environ["SLURM_NODEID"] if _is_step() else None


def job() -> str | None:
    """The number of the job, which stays when it is queued again; None outside of a step."""
    return os.environ.get("SLURM_JOB_ID") if _is_step() else None


def num_cores() -> int | None:
    """The cores of this node that the step may use; None outside of one."""
    text = os.environ.get("SLURM_CPUS_ON_NODE", "") if _is_step() else ""
    return int(text) if text.isdecimal() else None


def endpoint() -> str | None:
    """The first node of the step, and a port that other jobs mostly do not choose; None outside of a step.

    Raises:
        ClusterError: where the node has no address.
    """
    first = nodes.first_of_job(os.environ) if _is_step() else None
    if first is None:
        return None
    port = nodes.port_of(os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_STEP_ID", ""))
    return f"{nodes.address_of(first)}:{port}"


def require_one_task_per_node() -> None:
    """Checks that srun has started one agent on this node.

    Raises:
        ConfigError: where it has started several.
    """
    if not _is_step():
        return
    num = nodes.counts(os.environ["SLURM_STEP_TASKS_PER_NODE"])[int(os.environ["SLURM_NODEID"])]
    if num > 1:
        raise ConfigError(
            f"srun has started {num} agents on {socket.gethostname()}, and one starts all processes of a node: "
            f"srun --ntasks-per-node=1 trainkit agent ...; or leave the agent out: srun python launch/train.py ..."
        )
