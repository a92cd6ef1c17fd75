"""Precision: number formats as requested and obtained, and the loss scaling that fp16 needs."""

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

__all__ = ["LossScaler", "Name", "Precision", "in_full_precision"]

Name = Literal["fp64", "fp32", "tf32", "bf16", "fp16"]
NAMES: tuple[str, ...] = ("fp64", "fp32", "tf32", "bf16", "fp16")
SMALLEST_SCALE = 2.0**-24  # fp16's smallest number: a loss that overflows with it is above 2**40 or not finite
LARGEST_SCALE = 2.0**64  # gradients of zero overflow with no scale


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The number formats of a run. Parameters, gradients and optimizer state are fp32 (fp64: everything in float64).

    Args:
        name: fp32: float32 throughout, without the tensor cores' rounding. tf32: float32 storage, matrix products
            rounded to TF32. bf16, fp16: matrix products and convolutions under autocast; fp16 also scales the loss
            dynamically.
        initial_scale: fp16's first loss scale. An overflow halves it and skips the step; at 2**-24 it is a fault, see
            `Runtime`'s nonfinite.
        growth_interval: the number of steps without overflow after which the loss scale doubles.
        fp32_modules: modules that compute in fp32 where the rest is bf16 or fp16: names of classes, or paths such as
            `decoder.head` or `layers.*.norm` as in `named_modules`. Their outputs stay fp32.

    Raises:
        ConfigError: naming a value that is out of range.

    Example:
        >>> Precision(name="bf16").autocast_dtype
        torch.bfloat16
    """

    name: Name = "fp32"
    initial_scale: float = 2.0**16
    growth_interval: int = 2000
    fp32_modules: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.fp32_modules, str):
            raise ConfigError(
                f"precision.fp32_modules={self.fp32_modules}: must be a list of names, such as [{self.fp32_modules}]"
            )
        object.__setattr__(self, "fp32_modules", tuple(self.fp32_modules))
        if self.name not in NAMES:
            raise ConfigError(
                f"precision={self.name!r}: must be one of {', '.join(NAMES)}.{nearest(str(self.name), NAMES)}"
            )
        if not SMALLEST_SCALE <= self.initial_scale <= LARGEST_SCALE:
            raise ConfigError(f"precision.initial_scale={self.initial_scale}: must be 2**-24 to 2**64")
        if not self.growth_interval >= 1:
            raise ConfigError(f"precision.growth_interval={self.growth_interval}: must be 1 or more")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of parameters and inputs."""
        return torch.float64 if self.name == "fp64" else torch.float32

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype of autocast; None: autocast is not used."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)

    def check(self, device: torch.device) -> None:
        """Checks that a device supports the precision: a request is never lowered silently.

        Args:
            device: of the run.

        Raises:
            ConfigError: naming the precisions that it supports.
        """
        allowed = [name for name in NAMES if _can(name, device)]
        if self.name not in allowed:
            raise ConfigError(f"precision={self.name}: {_describe(device)} cannot; use precision={'|'.join(allowed)}")

    def apply(self, device: torch.device) -> str:
        """Sets torch's global switches.

        Args:
            device: of the run.

        Returns:
            What torch then reports, for the start-up line.

        Raises:
            ConfigError: where the device does not support the precision.
        """
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
        """Returns the context of a forward pass."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(device.type, self.autocast_dtype)

    def scaler(self) -> "LossScaler | None":
        """Returns a new loss scaler for an engine; None where this precision needs none."""
        if self.name != "fp16":
            return None
        return LossScaler(self.initial_scale, growth_interval=self.growth_interval)


class Fp32Modules:
    """Makes the modules that `Precision.fp32_modules` names compute in fp32.

    Args:
        precision: of the run.
    """

    def __init__(self, precision: Precision) -> None:
        self._names, self._lowers = tuple(precision.fp32_modules), precision.autocast_dtype is not None
        self._found: set[str] = set()
        self._present: set[str] = set()

    def apply(self, module: nn.Module) -> None:
        """Replaces the forward of those modules. Call it before a strategy wraps the module and before compilation.

        Args:
            module: a module that is set up.
        """
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
        replace_forward(parts, "fp32", _in_fp32)

    def require_all_found(self) -> None:
        """Checks that every name was found in a module.

        Raises:
            ConfigError: naming one that was not.
        """
        for name in self._names if self._present else ():
            if name not in self._found:
                raise ConfigError(
                    f"precision.fp32_modules={name}: no module has such a part; set a class, or a path such as "
                    f"{', '.join(sorted(self._present)[:8])}.{nearest(name, self._present)}"
                )


def in_full_precision(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function without autocast, with bf16 and fp16 tensors converted to fp32; unchanged where autocast is off.

    Args:
        call: the function.
        args: its positional arguments, trees of tensors.
        kwargs: its keyword arguments.

    Returns:
        What the function returns.
    """
    device = next((device for device in ("cuda", "cpu") if torch.is_autocast_enabled(device)), None)
    if device is None:
        return call(*args, **kwargs)
    args, kwargs = tree_map(widened, (args, kwargs))
    with torch.autocast(device, enabled=False):
        return call(*args, **kwargs)


def _in_fp32(forward: Forward) -> Forward:
    def in_fp32(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return in_full_precision(lambda *args, **kwargs: forward(self, *args, **kwargs), *args, **kwargs)

    return in_fp32


class LossScaler:
    """The factor on an fp16 loss: halved on overflow, doubled after `growth_interval` steps without overflow.

    Args:
        scale: the first factor.
        growth_interval: steps.
    """

    def __init__(self, scale: float, *, growth_interval: int) -> None:
        self.scale, self.growth_interval = scale, growth_interval
        self.num_good_steps = 0
        self.is_exhausted = False
        """Whether the last step overflowed with the smallest scale."""

    def update(self, finite: bool) -> None:
        """Adjusts the scale after a step.

        Args:
            finite: whether all gradients were finite, the same on all ranks.
        """
        self.is_exhausted = not finite and self.scale <= SMALLEST_SCALE
        if not finite:
            self.scale, self.num_good_steps = max(self.scale / 2, SMALLEST_SCALE), 0
            return
        self.num_good_steps += 1
        if self.num_good_steps >= self.growth_interval:
            self.scale, self.num_good_steps = min(self.scale * 2, LARGEST_SCALE), 0

    def state_dict(self) -> dict[str, float]:
        """Returns the scale and the number of steps since the last overflow."""
        return {"scale": self.scale, "num_good_steps": self.num_good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Loads a state, with the scale limited to the allowed range."""
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
