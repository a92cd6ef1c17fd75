"""The environment variables that a job carries to its other hosts."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from trainkit.errors import ConfigError

# Not those of a scheduler or another launcher (RANK, SLURM_*, PET_*), which describe this host.
CARRIED = (
    *("CUDA_*", "CUBLAS_*", "NCCL_*", "NVIDIA_TF32_OVERRIDE", "GLOO_*", "UCX_*", "DS_*", "TRITON_*"),
    *("TORCH_*", "PYTORCH_*", "TORCHINDUCTOR_*", "TRAINKIT_*", "WANDB_*", "HF_*", "HYDRA_FULL_ERROR"),
    *("OMP_*", "MKL_*", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM", "LD_LIBRARY_PATH"),
    *("PYTHONPATH", "PYTHONHASHSEED", "PYTHONWARNINGS"),
)
NOT_CARRIED = ("TORCHELASTIC_*", "CUDA_MPS_*")  # of one host


def carried(environment: Mapping[str, str], more: Iterable[str] = ()) -> dict[str, str]:
    """The variables for the other hosts.

    Args:
        environment: of this process.
        more: names of variables besides those of `CARRIED`, or NAME=VALUE.

    Returns:
        The variables by name.

    Raises:
        ConfigError: where one of `more` is not set.

    Example:
        >>> carried({"NCCL_DEBUG": "INFO", "HOME": "/root", "MINE": "1"}, ["MINE", "OTHER=2"])
        {'NCCL_DEBUG': 'INFO', 'MINE': '1', 'OTHER': '2'}
    """
    found = {name: value for name, value in environment.items() if _is_carried(name)}
    for entry in more:
        name, equals, value = entry.partition("=")
        if not name or (not equals and name not in environment):
            raise ConfigError(f"--env {entry}: is not set here; type --env NAME=VALUE, or set it before")
        found[name] = value if equals else environment[name]
    return found


def _is_carried(name: str) -> bool:
    return any(fnmatchcase(name, form) for form in CARRIED) and not any(fnmatchcase(name, form) for form in NOT_CARRIED)
