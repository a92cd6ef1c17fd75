"""Number formats: what was asked for, what the device gives, and the loss scaling that fp16 needs."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from trainkit.errors import ConfigError, nearest

Name = Literal["fp64", "fp32", "tf32", "bf16", "fp16"]
NAMES: tuple[str, ...] = ("fp64", "fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How a run computes. Parameters, gradients and optimizer state are fp32 (fp64: all in float64).

    fp32: float32 throughout, tensor cores' rounding off.  tf32: float32 storage, matrix products rounded to TF32.
    bf16, fp16: matrix products and convolutions under autocast.  fp16 also scales the loss, dynamically.

    initial_scale, growth_interval: fp16's first loss scale, and the number of steps without overflow after which it
    doubles (an overflow halves it and skips the step).
    """

    name: Name = "fp32"
    initial_scale: float = 2.0**16
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(
                f"precision={self.name!r}: allowed are {', '.join(NAMES)}.{nearest(str(self.name), NAMES)}"
            )

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
        torch.backends.cuda.matmul.fp32_precision = wanted
        torch.backends.cudnn.conv.fp32_precision = wanted  # type: ignore[attr-defined]
        if device.type != "cuda":
            return f"{self.name} on {_describe(device)}"
        return f"{self.name} (torch: float32 products in {torch.backends.cuda.matmul.fp32_precision})"

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


class LossScaler:
    """The factor an fp16 loss is multiplied by: halved when a gradient overflows, doubled after a run of good steps."""

    def __init__(self, scale: float, *, growth_interval: int) -> None:
        self.scale, self.growth_interval = scale, growth_interval
        self.num_good_steps = 0

    def update(self, finite: bool) -> None:
        """Takes the verdict on one step. All ranks must give the same one."""
        if not finite:
            self.scale, self.num_good_steps = self.scale / 2, 0
            return
        self.num_good_steps += 1
        if self.num_good_steps == self.growth_interval:
            self.scale, self.num_good_steps = self.scale * 2, 0

    def state(self) -> dict[str, float]:
        return {"scale": self.scale, "num_good_steps": self.num_good_steps}

    def load_state(self, state: dict[str, float]) -> None:
        self.scale, self.num_good_steps = float(state["scale"]), int(state["num_good_steps"])


def _can(name: str, device: torch.device) -> bool:
    if device.type == "cpu":
        return name != "tf32"
    if device.type == "cuda":
        # Volta and Turing emulate bf16 slowly and have no TF32 at all.
        return name not in ("bf16", "tf32") or torch.cuda.get_device_capability(device) >= (8, 0)
    return name == "fp32"


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"the {device.type.upper()}"
