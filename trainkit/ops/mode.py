"""Which ops run compiled: process-wide, as torch.backends is."""

from typing import Literal

import torch
from torch import Tensor

from trainkit.errors import ConfigError
from trainkit.ops import library
from trainkit.ops.build import ARCHS_VARIABLE

OFF_BY_DEFAULT: dict[str, frozenset[str]] = {
    # Measured slower than their references there (benchmarks/results).
    "cpu": frozenset({"bias_leaky_relu", "residual_layer_norm"}),
    "cuda": frozenset(),
}

_fused = True
_require = False


def use(kernels: Literal["fused", "reference"], require: bool = False) -> None:
    """Sets whether ops run compiled (fused) or as plain PyTorch (reference).

    require: an op that cannot run compiled is a ConfigError, not a warning.
    """
    global _fused, _require
    if kernels not in ("fused", "reference"):
        raise ConfigError(f"ops={kernels}: allowed are fused, reference")
    _fused, _require = kernels == "fused", require
    if require:
        library.load(require)  # otherwise with the first op: whoever uses none waits for no compiler


def is_on() -> bool:
    """Whether ops are to run compiled where they can."""
    return _fused


def is_required() -> bool:
    """Whether an op that cannot run compiled is an error."""
    return _require


def is_fused(op: str, x: Tensor) -> bool:
    """Whether `op` on `x` is to run compiled; builds the library when it is the first to ask."""
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


# What torch.compiler.assume_constant_result sets, without importing the compiler: a traced `is_fused` calls
# `_is_ready` outside of the trace.
_is_ready._dynamo_marked_constant = True  # type: ignore[attr-defined]
