"""Number formats: what was asked for, what the device gives, and the loss scaling that fp16 needs."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._pytree import tree_map

from trainkit.errors import ConfigError, nearest
from trainkit.modules.blocks import Forward, replace_forward
from trainkit.ops.dtypes import widened

Name = Literal["fp64", "fp32", "tf32", "bf16", "fp16"]
NAMES: tuple[str, ...] = ("fp64", "fp32", "tf32", "bf16", "fp16")
SMALLEST_SCALE = 2.0**-24  # fp16's smallest number: what overflows with it is above 2**40, or no number at all
LARGEST_SCALE = 2.0**64  # a gradient of zero overflows with none


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How a run computes. Parameters, gradients and optimizer state are fp32 (fp64: all in float64).

    fp32: float32 throughout, tensor cores' rounding off.  tf32: float32 storage, matrix products rounded to TF32.
    bf16, fp16: matrix products and convolutions under autocast.  fp16 also scales the loss, dynamically.

    initial_scale, growth_interval: fp16's first loss scale, and the number of steps without overflow after which it
    doubles (an overflow halves it and skips the step; at 2**-24 it is a fault, see `Runtime`'s nonfinite).
    fp32_modules: parts of modules that compute in fp32 where the rest is bf16 or fp16: names of classes, or paths such
    as `decoder.head` or `layers.*.norm` as `named_modules` has them. What they return stays fp32.
    """

    name: Name = "fp32"
    initial_scale: float = 2.0**16
    growth_interval: int = 2000
    fp32_modules: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.fp32_modules, str):
            raise ConfigError(
                f"precision.fp32_modules={self.fp32_modules}: allowed is a list of names, such as [{self.fp32_modules}]"
            )
        object.__setattr__(self, "fp32_modules", tuple(self.fp32_modules))
        if self.name not in NAMES:
            raise ConfigError(
                f"precision={self.name!r}: allowed are {', '.join(NAMES)}.{nearest(str(self.name), NAMES)}"
            )
        if not SMALLEST_SCALE <= self.initial_scale <= LARGEST_SCALE:
            raise ConfigError(f"precision.initial_scale={self.initial_scale}: allowed is 2**-24 to 2**64")
        if not self.growth_interval >= 1:
            raise ConfigError(f"precision.growth_interval={self.growth_interval}: allowed is 1 or more")

    @property
    def dtype(self) -> torch.dtype:
        """What parameters and inputs are stored in."""
        return torch.float64 if self.name == "fp64" else torch.float32

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)

    def check(self, device: torch.device) -> None:
        """Raises ConfigError when `device` cannot compute so: a request is never lowered silently."""
        allowed = [name for name in NAMES if _can(name, device)]
        if self.name not in allowed:
            raise ConfigError(f"precision={self.name}: {_describe(device)} cannot; use precision={'|'.join(allowed)}")

    def apply(self, device: torch.device) -> str:
        """Sets torch's global switches and returns what torch then reports, for the start-up line."""
        self.check(device)
        wanted = "tf32" if self.name == "tf32" else "ieee"
        backends: Any = torch.backends
        for switch in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):
            switch.fp32_precision = wanted
        for switch in (backends.mkldnn.matmul, backends.mkldnn.conv):
            switch.fp32_precision = "ieee"
        used = backends.cudnn if device.type == "cuda" else backends.mkldnn
        products = backends.cuda.matmul if device.type == "cuda" else used.matmul
        kept = (
            f", kept in fp32: {', '.join(self.fp32_modules)}"
            if self.fp32_modules and self.autocast_dtype is not None
            else ""
        )
        return (
            f"{self.name} on {_describe(device)} (torch: float32 products {products.fp32_precision}, "
            f"convolutions {used.conv.fp32_precision}){kept}"
        )

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(device.type, self.autocast_dtype)

    def scaler(self) -> "LossScaler | None":
        """A new scaler where this precision needs one; every engine has its own."""
        if self.name != "fp16":
            return None
        return LossScaler(self.initial_scale, growth_interval=self.growth_interval)


class Kept:
    """The parts of modules that `Precision.keep` names."""

    def __init__(self, precision: Precision) -> None:
        self._names, self._lowers = tuple(precision.fp32_modules), precision.autocast_dtype is not None
        self._found: set[str] = set()
        self._present: set[str] = set()

    def apply(self, module: nn.Module) -> None:
        """Makes those parts of `module` compute in fp32. Before a strategy spreads it, and before it is compiled."""
        if not self._names:
            return
        parts = []
        for path, part in module.named_modules(remove_duplicate=False):
            called = {path, type(part).__name__} - {""}
            matched = {name for name in self._names if any(fnmatchcase(one, name) for one in called)}
            self._found |= matched
            self._present |= called
            if matched and self._lowers:
                parts.append(part)
        replace_forward(parts, "kept", _kept)

    def require_all_found(self) -> None:
        """Raises ConfigError for a name that no module which was set up has a part of."""
        for name in self._names if self._present else ():
            if name not in self._found:
                raise ConfigError(
                    f"precision.fp32_modules={name}: no module has such a part; give a class, or a path such as "
                    f"{', '.join(sorted(self._present)[:8])}.{nearest(name, self._present)}"
                )


def in_full_precision(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`call(*args, **kwargs)` without autocast, and with bf16 and fp16 tensors widened to fp32.

    Where autocast is off already, the call as it is.
    """
    device = next((device for device in ("cuda", "cpu") if torch.is_autocast_enabled(device)), None)
    if device is None:
        return call(*args, **kwargs)
    args, kwargs = tree_map(widened, (args, kwargs))
    with torch.autocast(device, enabled=False):
        return call(*args, **kwargs)


def _kept(forward: Forward) -> Forward:
    def in_fp32(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return in_full_precision(lambda *args, **kwargs: forward(self, *args, **kwargs), *args, **kwargs)

    return in_fp32


class LossScaler:
    """The factor an fp16 loss is multiplied by: halved when a gradient overflows, doubled after a run of good steps."""

    def __init__(self, scale: float, *, growth_interval: int) -> None:
        self.scale, self.growth_interval = scale, growth_interval
        self.num_good_steps = 0
        self.is_exhausted = False
        """The last step overflowed with the smallest scale that there is."""

    def update(self, finite: bool) -> None:
        """Takes the verdict on one step. All ranks must give the same one."""
        self.is_exhausted = not finite and self.scale <= SMALLEST_SCALE
        if not finite:
            self.scale, self.num_good_steps = max(self.scale / 2, SMALLEST_SCALE), 0
            return
        self.num_good_steps += 1
        if self.num_good_steps >= self.growth_interval:
            self.scale, self.num_good_steps = min(self.scale * 2, LARGEST_SCALE), 0

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale, "num_good_steps": self.num_good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale = min(max(float(state["scale"]), SMALLEST_SCALE), LARGEST_SCALE)
        self.num_good_steps = int(state["num_good_steps"])


def _can(name: str, device: torch.device) -> bool:
    if device.type == "cpu":
        return name != "tf32"
    if device.type == "cuda":
        # Volta and Turing emulate bf16 slowly and have no TF32 at all.
        return name not in ("bf16", "tf32") or torch.cuda.get_device_capability(device) >= (8, 0)
    return name == "fp32"


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"the {device.type.upper()}"
