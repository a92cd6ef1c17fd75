"""Cluster: the processes of a job, as the environment variables of its launcher give them."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from trainkit.distributed import agent, launchers
from trainkit.distributed.open_files import allow_open_files
from trainkit.errors import ClusterError
from trainkit.logger import logger


@dataclass(frozen=True)
class Cluster:
    """The rank of this process, and the size of its job.

    Args:
        rank: of this process, from 0 to world_size - 1.
        world_size: processes of the job.
        local_rank: of this process among those of its host.
        local_world_size: processes of the job on this host.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Cluster":
        """Reads RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, which torchrun sets.

        Args:
            environment: in place of the environment of this process.

        Returns:
            The cluster; one process where none of the variables is set.

        Raises:
            ClusterError: where only some are set, or they contradict each other.

        Example:
            >>> Cluster.from_environment({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
            Cluster(rank=3, world_size=4, local_rank=1, local_world_size=2)
        """
        environment = os.environ if environment is None else environment
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        given = {name: environment[name] for name in names if name in environment}
        if "RANK" not in given and "WORLD_SIZE" not in given:
            return cls()
        try:
            rank, world_size = int(given["RANK"]), int(given["WORLD_SIZE"])
            local_rank = int(given.get("LOCAL_RANK", 0))
            local_world_size = int(given.get("LOCAL_WORLD_SIZE", 1))
        except (KeyError, ValueError) as error:
            raise ClusterError(
                f"RANK and WORLD_SIZE must both be set to numbers; the environment has {given}. Start with "
                f"`torchrun --nproc-per-node=N launch/train.py ...`, or unset them to run one process"
            ) from error
        if not (0 <= rank < world_size and 0 <= local_rank < local_world_size <= world_size):
            raise ClusterError(f"these process variables contradict each other: {given}; start with torchrun")
        return cls(rank, world_size, local_rank, local_world_size)

    @property
    def is_one_host(self) -> bool:
        """Whether all processes of the job are on this host."""
        return self.local_world_size == self.world_size


def join(cluster: Cluster, device: torch.device, *, alone: bool = False) -> bool:
    """Initializes the default process group unless there is one. Collective: every rank must call.

    Args:
        cluster: the processes of the job.
        device: of this process; with `cuda` the group has NCCL beside gloo.
        alone: whether one process initializes a group, too.

    Returns:
        Whether the group was initialized here.

    Raises:
        ClusterError: where the processes cannot reach each other, or an existing group is of another job.
    """
    if dist.is_initialized():
        if dist.get_world_size() != cluster.world_size or dist.get_rank() != cluster.rank:
            raise ClusterError(
                f"the process group has rank {dist.get_rank()} of {dist.get_world_size()}, "
                f"the environment says {cluster.rank} of {cluster.world_size}: start all processes with one launcher"
            )
        return False
    if cluster.world_size == 1:
        if alone:
            dist.init_process_group(_backends(device), store=dist.HashStore(), rank=0, world_size=1)
        return alone
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ClusterError(f"{' and '.join(missing)} not set: start the job with torchrun, which sets them")
    if cluster.is_one_host and os.uname().sysname == "Linux":
        # Otherwise gloo resolves the hostname, which fails or is slow on many machines.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Otherwise each gloo group connects all pairs, and the store passes bytes that grow with the cube of the ranks:
    # findings/gloo_store_traffic_is_cubic.sh.
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    if (scarce := allow_open_files(cluster.world_size)) is not None and cluster.rank == 0:
        logger(__name__).warning(scarce)
    try:
        device_id = device if device.type == "cuda" else None
        store = agent.rendezvous_store(cluster.rank, cluster.world_size)
        if store is None:
            dist.init_process_group(_backends(device), device_id=device_id)
        else:
            dist.init_process_group(
                _backends(device), store=store, rank=cluster.rank, world_size=cluster.world_size, device_id=device_id
            )
    except (RuntimeError, ValueError) as error:
        raise ClusterError(
            f"rank {cluster.rank} on {socket.gethostname()} could not join {cluster.world_size} processes at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {_why(str(error), device)}"
        ) from error
    return True


def _why(message: str, device: torch.device) -> str:
    """The message of torch or NCCL in one sentence, and what to do about it."""
    if "duplicate gpu" in message.lower():
        return (
            f"it shares {device} with another rank, which NCCL does not support. Start all processes of a machine with "
            f"one torchrun --nproc-per-node=gpu, or set CUDA_VISIBLE_DEVICES to different GPUs for each torchrun"
        )
    # The first line of an NCCL error is the place in torch where it was raised.
    reason = message.partition("Last error:")[2].strip() or message
    return (
        f"{reason.splitlines()[0] if reason else 'no reason was given'}. "
        f"Is GLOO_SOCKET_IFNAME / NCCL_SOCKET_IFNAME the interface that reaches the others?"
    )


def _backends(device: torch.device) -> str:
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def current_cluster() -> Cluster:
    """The cluster of the default process group where one is initialized, otherwise that of the environment.

    Raises:
        ClusterError: where srun or mpirun has started several processes, and does not tell where they meet.
    """
    if not dist.is_initialized():
        launchers.join()
    cluster = Cluster.from_environment()
    if dist.is_initialized() and cluster.world_size != dist.get_world_size():
        return _cluster_of_group()
    return cluster


def _cluster_of_group() -> Cluster:
    """The cluster of the default group, whose ranks exchange their hostnames: a group does not know its hosts."""
    store = dist.PrefixStore("trainkit/hosts", dist.distributed_c10d._get_default_store())
    rank, size = dist.get_rank(), dist.get_world_size()
    store.set(str(rank), socket.gethostname())
    hosts = [store.get(str(other)) for other in range(size)]
    return Cluster(rank, size, hosts[:rank].count(hosts[rank]), hosts.count(hosts[rank]))
