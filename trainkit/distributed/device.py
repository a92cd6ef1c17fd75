"""The device that a process computes on."""

import os

import torch

from trainkit.distributed.cluster import Cluster
from trainkit.errors import ConfigError


def choose_device(name: str, cluster: Cluster) -> torch.device:
    """The device of this process for `auto`, `cpu` or `cuda`; the GPU of its local rank becomes the current one.

    Raises ConfigError when there is none, or fewer than processes.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={name!r}: allowed are auto, cpu, cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no GPU here; use device=cpu, or install a CUDA build of torch")
    num_devices = torch.cuda.device_count()
    if cluster.local_rank >= num_devices:
        raise ConfigError(
            f"{cluster.local_world_size} processes on this machine and {num_devices} GPUs: "
            f"start with --nproc-per-node={num_devices}, or use device=cpu"
        )
    device = torch.device("cuda", cluster.local_rank)
    torch.cuda.set_device(device)
    return device


def compute_deterministically() -> None:
    """Makes torch take deterministic algorithms, for the rest of the process."""
    # cuBLAS reads this when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
