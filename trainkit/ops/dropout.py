"""Dropout whose mask is a function of (seed, layer, sample position, element), not of a generator's state."""

from typing import Any

import torch
from torch import Tensor, nn

from trainkit.errors import ConfigError, UsageError
from trainkit.ops import library, mode
from trainkit.random import rand


def dropout(x: Tensor, p: float, key: int, positions: Tensor, call: int = 0) -> Tensor:
    """Zeroes elements of x [N, ...] with probability `p` and scales the rest by 1/(1-p).

    positions: int64 [N], the samples' positions; the same (key, position, call) always drops the same elements.
    Nothing is kept for the backward pass but these numbers: the mask is drawn again. Differentiable as often as wanted.
    Raises ConfigError for shapes or a `p` that cannot be.
    """
    check_draw("dropout", x, p, positions)
    if not mode.is_fused("dropout", x):
        return dropout_reference(x, p, key, positions, call)
    return torch.ops.trainkit.dropout(x.contiguous(), p, key, positions.to(x.device).contiguous(), call)


def dropout_reference(x: Tensor, p: float, key: int, positions: Tensor, call: int = 0) -> Tensor:
    """`dropout` in plain PyTorch."""
    keep = rand(key, positions.to(x.device), tuple(x.shape[1:]), call=call) >= p
    return x * keep / (1.0 - p)


def check_draw(op: str, x: Tensor, p: float, positions: Tensor) -> None:
    """Raises ConfigError unless x [N, ...] can be dropped at `positions` [N] with probability `p`."""
    if not 0.0 <= p < 1.0:
        raise ConfigError(f"trainkit.ops.{op}: p={p}; allowed is 0 <= p < 1")
    if positions.dtype != torch.int64 or x.dim() == 0 or tuple(positions.shape) != (x.shape[0],):
        raise ConfigError(
            f"trainkit.ops.{op}: positions are {positions.dtype} {list(positions.shape)} beside an input of "
            f"{list(x.shape)}; they must be int64, one for each of its first dimension"
        )


@library.on_load
def _register() -> None:
    torch.library.register_fake("trainkit::dropout", lambda x, p, key, positions, call: torch.empty_like(x))
    torch.library.register_autograd("trainkit::dropout", _backward, setup_context=_keep)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.p, ctx.key, positions, ctx.call = inputs
    ctx.save_for_backward(positions)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (positions,) = ctx.saved_tensors
    dx = torch.ops.trainkit.dropout(grad.contiguous(), ctx.p, ctx.key, positions, ctx.call)
    return dx, None, None, None, None


def drop(layer: "Dropout", x: Tensor) -> Tensor:
    """`x` under the mask that `layer` has been told to draw. Not for a compiler: every layer's key is another."""
    return dropout(x, **layer.draw(x))


class Dropout(nn.Module):
    """Like `torch.nn.Dropout`, but the mask of a sample is the same on any split into ranks and after any resume.

    The first dimension of the input holds the samples. An Engine names every such layer by its place in the module
    and tells it which samples it sees; used outside one, call `see` first. Raises UsageError when the first dimension
    is not the number of samples.
    """

    drop = staticmethod(drop)

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ConfigError(f"dropout={p}: allowed is 0 <= dropout < 1")
        self.p = p
        self.seen: tuple[int, Tensor, int] = (0, torch.empty(0, dtype=torch.int64), 0)

    def see(self, key: int, positions: Tensor, call: int = 0) -> None:
        """Sets what the next masks are drawn from: the layer's key, positions int64 [N], the forward's number."""
        self.seen = key, positions, call

    def draw(self, x: Tensor) -> dict[str, Any]:
        """What an op that drops elements of `x` by itself is to be told: p, key, positions, call; {}: drop nothing."""
        if not self.training or self.p == 0.0:
            return {}
        key, positions, call = self.seen
        if len(x) != len(positions):
            raise UsageError(
                f"trainkit.ops.Dropout was told of {len(positions)} samples and sees {len(x)}: its input's first "
                f"dimension must be the samples of the micro-batch, and the module must be called through its Engine"
            )
        return {"p": self.p, "key": key, "positions": positions, "call": call}

    def forward(self, x: Tensor) -> Tensor:
        return x if not self.training or self.p == 0.0 else self.drop(self, x)

    def extra_repr(self) -> str:
        return f"p={self.p}"
