"""FusedLAMB of NVIDIA's apex, where it is installed and requested; `trainkit.optim.Lamb` needs no other package."""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from trainkit.errors import ConfigError

_INSTALL = (
    "git clone https://github.com/NVIDIA/apex && cd apex && pip install --no-build-isolation "
    '--config-settings "--build-option=--cpp_ext" --config-settings "--build-option=--cuda_ext" . ; '
    "or use optimizer=lamb"
)


def fused_lamb(
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    bias_correction: bool = True,
) -> torch.optim.Optimizer:
    """Makes `apex.optimizers.FusedLAMB`, with the arguments of `trainkit.optim.Lamb`; parameters must be on a GPU.

    It clips gradients to norm `max_grad_norm` itself, which has no effect where an Engine has clipped them already. It
    computes norms of its tensors, so an Engine rejects it under fsdp, hsdp and zero1 to 3. It has no masks and no
    copies.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay of the first and second moments.
        eps: added to the root of the second moment.
        weight_decay: factor of the weights in the update.
        max_grad_norm: largest norm of all gradients together.
        bias_correction: whether moments are divided by 1 - b^t.

    Returns:
        The optimizer.

    Raises:
        ConfigError: where NVIDIA's apex is not installed, with the command to install it.
    """
    require_apex()
    made: torch.optim.Optimizer = importlib.import_module("apex.optimizers").FusedLAMB(
        params,
        lr=lr,
        betas=tuple(betas),
        eps=eps,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        bias_correction=bias_correction,
        adam_w_mode=True,
        use_nvlamb=False,
    )
    made.needs_whole_parameters = True  # type: ignore[attr-defined]
    return made


def require_apex() -> None:
    """Raises ConfigError unless NVIDIA's apex is installed with its kernels, and not another package of that name."""
    # Installed only by its build with kernels.
    if importlib.util.find_spec("amp_C") is not None:
        return
    try:
        version = importlib.metadata.version("apex")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"optimizer=lamb_apex needs NVIDIA's apex, which is not on PyPI. Type: {_INSTALL}") from None
    if version.startswith("0.9"):
        raise ConfigError(
            f"optimizer=lamb_apex needs NVIDIA's apex, and apex {version} from PyPI is another package, for websites "
            f"in Pyramid. Type: pip uninstall apex && {_INSTALL}"
        )
    raise ConfigError(
        f"optimizer=lamb_apex needs the kernels of NVIDIA's apex, and apex {version} was installed without them. "
        f"Type: pip uninstall apex && {_INSTALL}"
    )
