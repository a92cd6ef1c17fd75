"""Ops: the implementation of `trainkit.ops` that a user chooses. Its arguments are those of `conf/ops/`."""

from dataclasses import dataclass
from typing import Literal, get_args

from trainkit.errors import ConfigError, nearest
from trainkit.ops import mode

Kernels = Literal["fused", "reference"]


@dataclass(frozen=True, kw_only=True)
class Ops:
    """Chooses the implementation of the layers in `trainkit.ops`.

    Args:
        kernels: `fused`: compiled, where measured to be faster; `reference`: plain PyTorch.
        require: whether it is an error, before any work, if they cannot be compiled; otherwise there is one warning,
            and plain PyTorch is used.

    Raises:
        ConfigError: for other `kernels`, or both settings that exclude each other.
    """

    kernels: Kernels = "fused"
    require: bool = False

    def __post_init__(self) -> None:
        allowed = get_args(Kernels)
        if self.kernels not in allowed:
            raise ConfigError(
                f"ops.kernels={self.kernels!r}: must be one of {', '.join(allowed)}."
                f"{nearest(str(self.kernels), allowed)}"
            )
        if self.require and self.kernels == "reference":
            raise ConfigError(
                "ops.require=true: ops.kernels=reference compiles nothing; use ops=fused, or leave it out"
            )

    def apply(self) -> None:
        """Sets the implementation for this process. Raises ConfigError where required kernels cannot be compiled."""
        mode.use(self.kernels, self.require)
