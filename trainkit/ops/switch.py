"""Ops: what a user asks for, of the layers of `trainkit.ops`. Its arguments are those of `conf/ops/`."""

from dataclasses import dataclass
from typing import Literal, get_args

from trainkit.errors import ConfigError, nearest
from trainkit.ops import mode

Kernels = Literal["fused", "reference"]


@dataclass(frozen=True, kw_only=True)
class Ops:
    """Which implementation the layers of `trainkit.ops` use.

    kernels: `fused`: compiled ones, where they were measured to be faster; `reference`: plain PyTorch.
    require: where they cannot be compiled, an error before any work; otherwise one warning, and plain PyTorch.
    """

    kernels: Kernels = "fused"
    require: bool = False

    def __post_init__(self) -> None:
        allowed = get_args(Kernels)
        if self.kernels not in allowed:
            raise ConfigError(
                f"ops.kernels={self.kernels!r}: allowed are {', '.join(allowed)}.{nearest(str(self.kernels), allowed)}"
            )
        if self.require and self.kernels == "reference":
            raise ConfigError(
                "ops.require=true: ops.kernels=reference compiles nothing; use ops=fused, or leave it out"
            )

    def apply(self) -> None:
        """Has this process do so. Raises ConfigError where what is required cannot be."""
        mode.use(self.kernels, self.require)
