"""The device of a process, and deterministic algorithms on it."""

import os

import torch

from trainkit.distributed.cluster import Cluster
from trainkit.errors import ConfigError


def choose_device(name: str, cluster: Cluster) -> torch.device:
    """Chooses the device of this process, and makes it the current one if it is a GPU.

    Args:
        name: `cpu`, `cuda` or `auto`, which is `cuda` where a GPU is available.
        cluster: its local rank is the number of the GPU.

    Returns:
        The device.

    Raises:
        ConfigError: where there is no GPU, or fewer GPUs than processes on this machine.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={name!r}: must be one of auto, cpu, cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch finds no GPU; use device=cpu, or install a CUDA build of torch")
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
    """Makes torch use deterministic algorithms for the rest of the process."""
    # cuBLAS reads this at its first call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
