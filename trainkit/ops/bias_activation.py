"""Bias, activation and dropout in one pass, differentiable twice."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainkit.errors import ConfigError, UsageError, nearest
from trainkit.ops import library, mode
from trainkit.ops.dropout import check_draw, dropout_reference
from trainkit.ops.layer_norm import sum_dtype

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    # In the order of csrc/bias_activation.cpp.
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
}
_NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}


def bias_activation_dropout(
    x: Tensor,
    bias: Tensor | None,
    activation: str = "gelu",
    *,
    p: float = 0.0,
    key: int = 0,
    positions: Tensor | None = None,
    call: int = 0,
) -> Tensor:
    """Computes dropout(f(x + bias)), in the dtype of x.

    For the backward pass x and the bias are kept, and the mask is drawn again. The bias' gradient is bit-identical for
    any number of threads. Differentiable twice.

    Args:
        x: [..., D]; with dropout [N, ..., D].
        bias: [D], of any floating dtype; None: no bias.
        activation: `gelu` (by erf), `gelu_tanh`, `relu`, `silu` or `leaky_relu` (slope 0.2); `trainkit.ops.activation`
            makes others.
        p: the probability with which an element is dropped.
        key: of the mask, see `trainkit.ops.dropout`.
        positions: int64 [N], the samples' positions; None: nothing is dropped.
        call: distinguishes further masks with the same key.

    Returns:
        A tensor of the shape and dtype of x.

    Raises:
        ConfigError: for shapes that do not match, and an unknown activation.

    Example:
        >>> bias_activation_dropout(torch.tensor([[-1.0, 1.0]]), torch.tensor([0.0, 1.0]), "relu")
        tensor([[0., 2.]])
    """
    check_operands("bias_activation_dropout", x, bias, p, positions)
    known_activation(activation)
    if not mode.is_fused("bias_activation_dropout", x):
        return bias_activation_dropout_reference(x, bias, activation, p=p, key=key, positions=positions, call=call)
    return run(torch.ops.trainkit.bias_activation, x, bias, _NUMBERS[activation], p, key, positions, call)


def bias_activation_dropout_reference(
    x: Tensor,
    bias: Tensor | None,
    activation: str | Callable[[Tensor], Tensor] = "gelu",
    *,
    p: float = 0.0,
    key: int = 0,
    positions: Tensor | None = None,
    call: int = 0,
) -> Tensor:
    """`bias_activation_dropout` in plain PyTorch; `activation` may be any function."""
    function = ACTIVATIONS[activation] if isinstance(activation, str) else activation
    y = function(x if bias is None else x + bias.to(x.dtype))
    return y if positions is None or p == 0.0 else dropout_reference(y, p, key, positions, call)


class ActivatedLinear(nn.Linear):
    """Computes activation(x @ weight.T + bias), with the bias and the activation in one pass over the product.

    The parameters are those of `torch.nn.Linear`. In code compiled by torch.compile, fusing them is left to the
    compiler.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        activation: as for `bias_activation_dropout`.
        bias: whether there is one.

    Raises:
        ConfigError: for an unknown activation.
    """

    def __init__(self, in_features: int, out_features: int, activation: str = "gelu", bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.activation = known_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [..., in_features] to [..., out_features]."""
        if torch.compiler.is_compiling() or not mode.is_fused("bias_activation_dropout", x):
            return ACTIVATIONS[self.activation](super().forward(x))
        return bias_activation_dropout(F.linear(x, self.weight), self.bias, self.activation)

    def extra_repr(self) -> str:
        """Returns the sizes and the activation, for `repr`."""
        return f"{super().extra_repr()}, activation={self.activation}"


def known_activation(activation: str) -> str:
    """Returns `activation` itself. Raises ConfigError for an unknown one."""
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"activation={activation}: must be one of {', '.join(ACTIVATIONS)}.{nearest(activation, ACTIVATIONS)}"
        )
    return activation


def check_operands(op: str, x: Tensor, bias: Tensor | None, p: float, positions: Tensor | None) -> None:
    """Raises ConfigError unless the shapes of x [..., D], bias [D] and positions [N] match."""
    if x.dim() == 0 or (bias is not None and bias.shape != x.shape[-1:]):
        raise ConfigError(
            f"trainkit.ops.{op}: x {list(x.shape)}, bias {None if bias is None else list(bias.shape)}; "
            f"they must be [..., D] and [D]"
        )
    if positions is not None:
        check_draw(op, x, p, positions)
        if x.dim() == 1:
            raise ConfigError(f"trainkit.ops.{op}: x {list(x.shape)}; with dropout it must be [N, ..., D]")


def run(
    op: Callable[..., Tensor],
    x: Tensor,
    bias: Tensor | None,
    number: int,
    p: float,
    key: int,
    positions: Tensor | None,
    call: int,
) -> Tensor:
    """Calls an op with the signature of `trainkit::bias_activation`, on operands converted for its kernels.

    Args:
        op: the op.
        x: [..., D].
        bias: [D], or None.
        number: of the activation, in the order of ACTIVATIONS.
        p: the probability with which an element is dropped.
        key: of the mask.
        positions: int64 [N], or None.
        call: distinguishes further masks with the same key.

    Returns:
        The output of the op.
    """
    wide_bias = None if bias is None else bias.to(sum_dtype(x)).contiguous()
    drawn = None if positions is None or p == 0.0 else positions.to(x.device).contiguous()
    return op(x.contiguous(), wide_bias, number, p, key, drawn, call)


# -- fakes and derivatives ---------------------------------------------------------------------------------------------


def register(name: str) -> None:
    """Registers the fake implementations and derivatives of the ops `name`, `name`_backward and `name`_second.

    Args:
        name: such as `trainkit::bias_activation`; a user's activation has three ops of the same signatures.
    """
    library_name, _, stem = name.partition("::")
    ops = getattr(torch.ops, library_name)
    backward, second = getattr(ops, f"{stem}_backward"), getattr(ops, f"{stem}_second")

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, positions = ctx.saved_tensors
        dx, dbias = backward(grad.contiguous(), x, bias, ctx.number, ctx.p, ctx.key, positions, ctx.call)
        return dx, None if bias is None else dbias, None, None, None, None, None

    def differentiate_twice(ctx: Any, grad_dx: Tensor | None, grad_dbias: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, x, bias, positions = ctx.saved_tensors
        if bias is None:
            grad_dbias = None
        grad_dx = torch.zeros_like(x) if grad_dx is None else grad_dx.contiguous()
        grad_dbias = None if grad_dbias is None else grad_dbias.contiguous()
        dgrad, dx, dbias = second(grad_dx, grad_dbias, grad, x, bias, ctx.number, ctx.p, ctx.key, positions, ctx.call)
        return dgrad, dx, None if bias is None else dbias, None, None, None, None, None

    torch.library.register_fake(name, lambda x, *_: torch.empty_like(x))
    torch.library.register_autograd(name, differentiate, setup_context=_keep)
    torch.library.register_fake(f"{name}_backward", _fake_backward)
    torch.library.register_autograd(f"{name}_backward", differentiate_twice, setup_context=_keep_backward)
    torch.library.register_fake(f"{name}_second", _fake_second)
    torch.library.register_autograd(f"{name}_second", _refuse)


@library.on_load
def _register() -> None:
    register("trainkit::bias_activation")


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, ctx.number, ctx.p, ctx.key, positions, ctx.call = inputs
    ctx.save_for_backward(x, bias, positions)


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, x, bias, ctx.number, ctx.p, ctx.key, positions, ctx.call = inputs
    ctx.save_for_backward(grad, x, bias, positions)
    ctx.set_materialize_grads(False)


def _fake_backward(grad: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), x.new_empty(x.shape[-1], dtype=sum_dtype(x))


def _fake_second(grad_dx: Tensor, grad_dbias: Tensor | None, grad: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(x), x.new_empty(x.shape[-1], dtype=sum_dtype(x))


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise UsageError("bias_activation_dropout is differentiable twice; for a third time use ops=reference")
