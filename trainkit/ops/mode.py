"""Which ops run compiled: a process-wide setting, like those of torch.backends."""

from typing import Literal

import torch
from torch import Tensor

from trainkit.errors import ConfigError
from trainkit.ops import library
from trainkit.ops.build import ARCHS_VARIABLE

OFF_BY_DEFAULT: dict[str, frozenset[str]] = {
    # Measured to be slower than their references (benchmarks/results).
    "cpu": frozenset({"bias_leaky_relu", "residual_layer_norm"}),
    "cuda": frozenset(),
}

_fused = True
_require = False


def use(kernels: Literal["fused", "reference"], require: bool = False) -> None:
    """Sets whether ops run compiled or as plain PyTorch.

    Args:
        kernels: fused (compiled) or reference (plain PyTorch).
        require: whether an op that cannot run compiled is an error; otherwise it is a warning.

    Raises:
        ConfigError: for other `kernels`, and with `require` where they cannot be compiled.
    """
    global _fused, _require
    if kernels not in ("fused", "reference"):
        raise ConfigError(f"ops={kernels}: must be fused or reference")
    _fused, _require = kernels == "fused", require
    if require:
        library.load(require)  # otherwise by the first op: a run without ops waits for no compiler


def is_on() -> bool:
    """Whether ops run compiled where they can."""
    return _fused


def is_required() -> bool:
    """Whether an op that cannot run compiled is an error."""
    return _require


def is_fused(op: str, x: Tensor) -> bool:
    """Whether `op` on `x` runs compiled; the first call builds or loads the library."""
    if not _fused:
        return False
    device = x.device.type
    if op in OFF_BY_DEFAULT.get(device, ()):
        return False
    if device == "cuda" and x.dtype == torch.float64:
        library.without("the ops have no float64 kernels for CUDA; type: ops=reference", _require)
        return False
    return _is_ready(device, _require)


def _is_ready(device: str, require: bool) -> bool:
    found = library.load(require)
    if found is None or device in ("cpu", "meta"):
        return found is not None
    if device == "cuda":
        capability = torch.cuda.get_device_capability()
        if found.runs_on(capability):
            return True
        arch = ".".join(map(str, capability))
        built = f"were compiled for CUDA {', '.join(found.archs)}" if found.archs else "were compiled without nvcc"
        remedy = f"install the CUDA toolkit, then type: {ARCHS_VARIABLE}={arch} trainkit doctor --build"
        library.without(f"the ops {built}, and this GPU is {arch}; {remedy}", require)
    else:
        library.without(f"the ops have kernels for CPU and CUDA, not for {device}; type: ops=reference", require)
    return False


# As torch.compiler.assume_constant_result sets it, without an import of the compiler: a traced `is_fused` calls
# `_is_ready` outside of the trace.
_is_ready._dynamo_marked_constant = True  # type: ignore[attr-defined]
