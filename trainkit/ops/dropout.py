"""Dropout whose mask is a function of (seed, layer, sample position, element), not of a generator's state."""

from typing import Any

import torch
from torch import Tensor, nn

from trainkit.errors import ConfigError, UsageError
from trainkit.ops import library, mode
from trainkit.random import rand


def dropout(x: Tensor, p: float, key: int, positions: Tensor, call: int = 0) -> Tensor:
    """Zeroes elements with probability `p` and scales the others by 1/(1-p).

    The same (key, position, call) always zeroes the same elements. Only these numbers are saved for the backward pass,
    which draws the mask again. Differentiable any number of times.

    Args:
        x: [N, ...].
        p: the probability, 0 <= p < 1.
        key: of the mask, such as a layer's.
        positions: int64 [N], the samples' positions.
        call: distinguishes further masks with the same key.

    Returns:
        A tensor of the shape and dtype of x.

    Raises:
        ConfigError: for shapes that do not match, or `p` out of range.

    Example:
        >>> x = torch.ones(2, 4)
        >>> torch.equal(dropout(x, 0.5, 1, torch.arange(2))[1:], dropout(x[1:], 0.5, 1, torch.tensor([1])))
        True
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
    """Raises ConfigError unless x is [N, ...], positions is int64 [N] and 0 <= p < 1."""
    if not 0.0 <= p < 1.0:
        raise ConfigError(f"trainkit.ops.{op}: p={p}: must be 0 <= p < 1")
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


def drop(layer: "Dropout", x: Tensor, positions: Tensor | None = None) -> Tensor:
    """Drops elements of `x` by the layer's current mask. Not compiled by torch.compile: every layer has another key."""
    return dropout(x, **layer.draw(x, positions))


class Dropout(nn.Module):
    """Like `torch.nn.Dropout`, but the mask of a sample does not depend on the split into ranks or on resumes.

    The first dimension of the input is the samples. An Engine derives every layer's key from its name in the module,
    and sets the positions of the samples; without an Engine, call `see` first.

    Args:
        p: the probability with which an element is dropped.

    Raises:
        ConfigError: unless 0 <= p < 1.
        UsageError: by the forward pass, where the first dimension is not the number of samples.
    """

    drop = staticmethod(drop)

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ConfigError(f"dropout={p}: must be 0 <= dropout < 1")
        self.p = p
        self.seen: tuple[int, Tensor, int] = (0, torch.empty(0, dtype=torch.int64), 0)

    def see(self, key: int, positions: Tensor, call: int = 0) -> None:
        """Sets the source of the next masks.

        Args:
            key: of the layer.
            positions: int64 [N], the samples' positions.
            call: the number of the forward pass.
        """
        self.seen = key, positions, call

    def draw(self, x: Tensor, positions: Tensor | None = None) -> dict[str, Any]:
        """Returns the arguments p, key, positions and call for an op that includes dropout; empty: nothing is dropped.

        Args:
            x: [N, ...], the input of the op.
            positions: int64 [N], where the first dimension is not the samples, such as numbers of the tokens of rows
                without padding: the mask of a row depends on its number alone. None: those of the samples.

        Raises:
            UsageError: where N is not the number of positions.
        """
        if not self.training or self.p == 0.0:
            return {}
        key, of_samples, call = self.seen
        positions = of_samples if positions is None else positions
        if len(x) != len(positions):
            raise UsageError(
                f"trainkit.ops.Dropout has the positions of {len(positions)} samples and an input of {len(x)}: its "
                f"first dimension must be the samples of the micro-batch, and the module must be called through its "
                f"Engine"
            )
        return {"p": self.p, "key": key, "positions": positions, "call": call}

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Drops elements of x [N, ...] in training mode; `positions` are those of `draw`."""
        return x if not self.training or self.p == 0.0 else self.drop(self, x, positions)

    def extra_repr(self) -> str:
        """Returns the probability, for `repr`."""
        return f"p={self.p}"
