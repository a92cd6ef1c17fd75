"""Dropout, residual sum and LayerNorm (Ba et al., arXiv 1607.06450) in one pass."""

from collections.abc import Sequence
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainkit.errors import ConfigError
from trainkit.ops import library, mode
from trainkit.ops.dropout import Dropout, check_draw, dropout_reference


def dropout_residual_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float,
    p: float = 0.0,
    key: int = 0,
    positions: Tensor | None = None,
    call: int = 0,
) -> tuple[Tensor, Tensor]:
    """Computes summed = residual + dropout(x) and normed = LayerNorm(summed) over the last dimension, in one pass.

    Statistics and sums are computed in float32 (float64 for float64). For the backward pass `summed` and the mean and
    standard deviation of each row are saved; the mask is drawn again. The gradients of weight and bias are
    bit-identical for any number of threads. The second derivative is computed in plain PyTorch, which is slower.

    Args:
        x: [N, ..., D].
        residual: [N, ..., D].
        weight: [D], of any floating dtype.
        bias: [D], of any floating dtype; None: no bias.
        eps: added to the variance.
        p: the probability with which an element of x is dropped.
        key: of the mask, see `trainkit.ops.dropout`.
        positions: int64 [N], the samples' positions; None: nothing is dropped.
        call: distinguishes further masks with the same key.

    Returns:
        (normed, summed), in the wider dtype of x and residual.

    Raises:
        ConfigError: for shapes that do not match.
    """
    _check(x, residual, weight, bias, p, positions)
    if p == 0.0:
        positions = None
    if not mode.is_fused("residual_layer_norm" if positions is None else "dropout_residual_layer_norm", x):
        return dropout_residual_layer_norm_reference(
            x, residual, weight, bias, eps=eps, p=p, key=key, positions=positions, call=call
        )
    dtype = torch.promote_types(x.dtype, residual.dtype)
    normed, summed, _, _ = torch.ops.trainkit.dropout_residual_layer_norm(
        x.to(dtype).contiguous(),
        residual.to(dtype).contiguous(),
        weight.to(sum_dtype(x)).contiguous(),
        (torch.zeros_like(weight) if bias is None else bias).to(sum_dtype(x)).contiguous(),
        eps,
        p,
        key,
        None if positions is None else positions.to(x.device).contiguous(),
        call,
    )
    return normed, summed


def dropout_residual_layer_norm_reference(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float,
    p: float = 0.0,
    key: int = 0,
    positions: Tensor | None = None,
    call: int = 0,
) -> tuple[Tensor, Tensor]:
    """`dropout_residual_layer_norm` in plain PyTorch."""
    dropped = x if positions is None or p == 0.0 else dropout_reference(x, p, key, positions, call)
    summed = residual + dropped
    wide = sum_dtype(summed)
    wide_bias = None if bias is None else bias.to(wide)
    normed = F.layer_norm(summed.to(wide), x.shape[-1:], weight.to(wide), wide_bias, eps)
    return normed.to(summed.dtype), summed


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last dimension, optionally fused with a dropout and a residual sum before it.

    Its parameters have the names and shapes of those of `torch.nn.LayerNorm`.

    Args:
        size: of the last dimension.
        eps: added to the variance.
        bias: whether there is one.
    """

    def __init__(self, size: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(size, eps=eps, bias=bias)

    @overload
    def forward(self, x: Tensor) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, residual: Tensor, dropout: Dropout, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        dropout: Dropout | None = None,
        positions: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Computes LayerNorm(x), or with a residual (LayerNorm(summed), summed), summed = residual + dropout(x).

        Args:
            x: [N, ..., D].
            residual: [N, ..., D]; None: there is no sum.
            dropout: the layer that drops elements of x; None: none are dropped.
            positions: int64 [N], of the mask, where the first dimension is not the samples, see `Dropout.draw`.
        """
        if residual is None:
            return super().forward(x)
        draw: dict[str, Any] = {}
        if dropout is not None and torch.compiler.is_compiling():
            x = dropout(x, positions)  # each layer's key would cause a compilation of its own
        elif dropout is not None:
            draw = dropout.draw(x, positions)
        return dropout_residual_layer_norm(x, residual, self.weight, self.bias, eps=self.eps, **draw)


def sum_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which kernels on `x` compute sums."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, p: float, positions: Tensor | None
) -> None:
    op = "dropout_residual_layer_norm"
    size = x.shape[-1:]
    bias_shape = size if bias is None else bias.shape
    if x.dim() < 2 or residual.shape != x.shape or weight.shape != size or bias_shape != size:
        raise ConfigError(
            f"trainkit.ops.{op}: x {list(x.shape)}, residual {list(residual.shape)}, weight {list(weight.shape)}, bias "
            f"{list(bias_shape)}; they must be [N, ..., D], the same, [D] and [D]"
        )
    if positions is not None:
        check_draw(op, x, p, positions)


# -- fakes and derivatives ---------------------------------------------------------------------------------------------


@library.on_load
def _register() -> None:
    op, back = "trainkit::dropout_residual_layer_norm", "trainkit::dropout_residual_layer_norm_backward"
    torch.library.register_fake(op, _fake)
    torch.library.register_autograd(op, _backward, setup_context=_keep)
    torch.library.register_fake(back, _fake_backward)
    torch.library.register_autograd(back, _second, setup_context=_keep_second)


def _fake(x: Tensor, residual: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    rows = weight.new_empty(x.numel() // max(x.shape[-1], 1))
    return torch.empty_like(x), torch.empty_like(x), rows, torch.empty_like(rows)


def _fake_backward(
    grad: Tensor,
    grad_summed: Tensor | None,
    summed: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    p: float,
    key: int,
    positions: Tensor | None,
    call: int,
) -> tuple[Tensor, ...]:
    dx = summed.new_empty(0) if positions is None else torch.empty_like(summed)
    return torch.empty_like(summed), dx, torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, weight, _, _, ctx.p, ctx.key, positions, ctx.call = inputs
    _, summed, mean, rstd = output
    ctx.save_for_backward(summed, mean, rstd, weight, positions)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_summed: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    summed, mean, rstd, weight, positions = ctx.saved_tensors
    grad = torch.zeros_like(summed) if grad is None else grad.contiguous()
    dresidual, dx, dweight, dbias = torch.ops.trainkit.dropout_residual_layer_norm_backward(
        grad,
        None if grad_summed is None else grad_summed.contiguous(),
        summed,
        mean,
        rstd,
        weight,
        ctx.p,
        ctx.key,
        positions,
        ctx.call,
    )
    return dresidual if positions is None else dx, dresidual, dweight, dbias, None, None, None, None, None


def _keep_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, grad_summed, summed, _, rstd, weight, ctx.p, ctx.key, positions, ctx.call = inputs
    ctx.save_for_backward(grad, grad_summed, summed, rstd, weight, positions)
    ctx.set_materialize_grads(False)


def _second(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, grad_summed, summed, rstd, weight, positions = ctx.saved_tensors
    with torch.enable_grad():
        # Views: `grad` may depend on the weight too, and that dependence must not be differentiated here.
        operands: list[Any] = [None if x is None else x.view_as(x) for x in (grad, grad_summed, summed, weight)]
        outputs = _backward_reference(operands, rstd)
        if positions is not None:
            outputs[1] = dropout_reference(outputs[0], ctx.p, ctx.key, positions, ctx.call)
        wanted = [i for i, operand in enumerate(operands) if operand is not None and operand.requires_grad]
        pairs = [(output, weights) for output, weights in zip(outputs, grads, strict=True) if weights is not None]
        found = torch.autograd.grad(
            [output for output, _ in pairs],
            [operands[i] for i in wanted],
            [weights for _, weights in pairs],
            create_graph=True,
            allow_unused=True,
        )
    by_operand = dict(zip(wanted, found, strict=True))
    dgrad, dgrad_summed, dsummed, dweight = (by_operand.get(i) for i in range(4))
    return dgrad, dgrad_summed, dsummed, None, None, dweight, None, None, None, None


def _backward_reference(operands: Sequence[Any], rstd: Tensor) -> list[Tensor]:
    """Computes the backward op without dropout, as a differentiable function of its floating operands."""
    grad, grad_summed, summed, weight = operands
    wide = grad.to(weight.dtype).flatten(0, -2)
    rows = summed.to(weight.dtype).flatten(0, -2)
    centred = rows - rows.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    eps = (rstd.unsqueeze(-1) ** -2 - variance).detach()
    scale = (variance + eps).rsqrt()
    unit = centred * scale
    product = wide * weight
    along = product - product.mean(-1, keepdim=True) - unit * (product * unit).mean(-1, keepdim=True)
    dresidual = (along * scale).view_as(summed).to(summed.dtype)
    if grad_summed is not None:
        dresidual = dresidual + grad_summed
    return [dresidual, dresidual.new_empty(0), (wide * unit).sum(0), wide.sum(0)]
