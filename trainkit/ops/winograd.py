"""A convolution that keeps the size of its input; on the CPU in channels-last layout, and by Winograd's algorithm."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from trainkit.errors import ConfigError
from trainkit.ops import mode
from trainkit.ops.resample import upsample

MATRIX_BYTES = 1 << 20  # of a transformed part of an image: two of them stay in a core's cache
MIN_CHANNELS = 16  # of either side, for 3x3: with fewer, torch's was measured to be as fast


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, slope: float = 1.0, doubled: bool = False
) -> Tensor:
    """Convolves, with stride 1 and the padding that keeps height and width, and applies a leaky ReLU.

    Where `convolves_fast`, the result is in channels-last layout, and 3x3 convolutions use Winograd's F(4x4, 3x3)
    (Lavin and Gray, CVPR 2016, arXiv 1509.09308): float32 errors are some 1e-5 of the largest value, torch's 2e-6.
    Otherwise it is torch's. Differentiable any number of times; unlike torch's, a second derivative costs no more than
    the first.

    Args:
        x: [B, C, H, W].
        weight: [D, C, K, K], K odd.
        bias: [D]; None: no bias.
        slope: of the leaky ReLU, in 0 .. 1 without 0; 1: none.
        doubled: whether x is doubled in height and width by nearest neighbour first.

    Returns:
        [B, D, H, W], of twice the height and width with `doubled`.

    Raises:
        ConfigError: for shapes that do not match.
    """
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[1] != x.shape[1] or weight.shape[-1] % 2 == 0:
        raise ConfigError(
            f"trainkit.ops.convolution: x {list(x.shape)}, weight {list(weight.shape)}; they must be [B, C, H, W] and "
            f"[D, C, K, K] with K odd"
        )
    if not convolves_fast(x, weight, doubled=doubled):
        return convolution_reference(x, weight, bias, slope=slope, doubled=doubled)
    if weight.shape[-1] == 1:
        y_BHWD = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)
        return (y_BHWD if slope == 1.0 else _rectified(y_BHWD, slope)).permute(0, 3, 1, 2)
    return _winograd(x, weight, bias, slope, doubled)


def convolution_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, slope: float = 1.0, doubled: bool = False
) -> Tensor:
    """`convolution` in plain PyTorch."""
    x = upsample(x) if doubled else x
    y = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
    return y if slope == 1.0 else F.leaky_relu(y, slope)


def convolves_fast(x: Tensor, weight: Tensor, *, doubled: bool = False) -> bool:
    """Whether `convolution` is not torch's: on the CPU, in fp32 and fp64, where that was measured to be faster."""
    if x.device.type != "cpu" or x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64):
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    scale = 2 if doubled else 1
    height, width, size = scale * x.shape[2], scale * x.shape[3], weight.shape[-1]
    fits = size == 3 and height % 4 == width % 4 == 0 and min(weight.shape[:2]) >= MIN_CHANNELS
    return min(height, width) >= 8 and (fits or (size == 1 and not doubled)) and mode.is_fused("convolution", x)


# -- derivatives: each of the three is linear in either argument, and its derivatives are the other two ---------------


def _winograd(x: Tensor, weight: Tensor, bias: Tensor | None, slope: float = 1.0, doubled: bool = False) -> Tensor:
    # The gradient of the weight is computed in a node of its own, which a gradient with respect to x does not reach.
    shape = (x.shape[0], weight.shape[0], *(size * (2 if doubled else 1) for size in x.shape[2:]))
    gradient = None
    if torch.is_grad_enabled():
        gradient = _Parameters.apply(weight, bias, (x, shape, doubled))  # type: ignore[no-untyped-call]
    y: Tensor = _Convolution.apply(x, gradient, (weight, bias, slope, doubled))  # type: ignore[no-untyped-call]
    return y


class _Parameters(Function):
    """To a tensor of the output's shape without memory: its gradient is that of the output."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, constants: tuple[Any, ...]) -> Tensor:
        x, shape, ctx.doubled = constants
        ctx.save_for_backward(x)
        ctx.has_bias = bias is not None
        return weight.new_zeros(()).expand(shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,), (g,) = ctx.saved_tensors, grads
        grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_weight = _WeightGradient.apply(x, g, ctx.doubled)  # type: ignore[no-untyped-call]
        grad_bias = g.sum(dim=(0, 2, 3)) if ctx.has_bias and ctx.needs_input_grad[1] else None
        return grad_weight, grad_bias, None


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor | None, constants: tuple[Any, ...]) -> Tensor:
        weight, bias, ctx.slope, ctx.doubled = constants
        y = _convolve(x, weight, bias, ctx.slope, ctx.doubled)
        ctx.save_for_backward(weight, None if ctx.slope == 1.0 else y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight, y), (g,) = ctx.saved_tensors, grads
        g = g if y is None else _Slope.apply(g, y, ctx.slope)  # type: ignore[no-untyped-call]
        grad_x = _winograd(g, _adjoint(weight), None) if ctx.needs_input_grad[0] else None
        return _halved(grad_x, ctx.doubled), g if ctx.needs_input_grad[1] else None, None


class _WeightGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, doubled: bool) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.doubled = doubled
        return _correlate(x, g, doubled)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, g), (v,) = ctx.saved_tensors, grads
        grad_x = _winograd(g, _adjoint(v), None) if ctx.needs_input_grad[0] else None
        grad_g = _winograd(x, v, None, doubled=ctx.doubled) if ctx.needs_input_grad[1] else None
        return _halved(grad_x, ctx.doubled), grad_g, None


class _Slope(Function):
    """The derivative of a leaky ReLU with the result y, times g; piecewise constant in y."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(y)
        ctx.slope = slope
        if g.stride() != y.stride():  # with two layouts it takes several times as long
            g = torch.empty_like(y).copy_(g)
        return torch.ops.aten.leaky_relu_backward(g, y, slope, True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        return _Slope.apply(grads[0], y, ctx.slope), None, None  # type: ignore[no-untyped-call]


class _Rectified(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.mark_dirty(x)
        y = F.leaky_relu_(x, slope)
        ctx.save_for_backward(y)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        return _Slope.apply(grads[0], y, ctx.slope), None  # type: ignore[no-untyped-call]


def _rectified(x: Tensor, slope: float) -> Tensor:
    y: Tensor = _Rectified.apply(x, slope)  # type: ignore[no-untyped-call]
    return y


def _adjoint(weight: Tensor) -> Tensor:
    """Weights with which the gradient of the output is convolved to that of the input."""
    return weight.transpose(0, 1).flip(2, 3)


def _halved(gradient: Tensor | None, doubled: bool) -> Tensor | None:
    return F.avg_pool2d(gradient, 2, divisor_override=1) if doubled and gradient is not None else gradient


# -- Winograd's algorithm on [B, H, W, C] images -----------------------------------------------------------------------


@torch.autocast("cpu", enabled=False)
def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, slope: float, doubled: bool) -> Tensor:
    num_out, num_in = weight.shape[:2]
    matrices = (_of_weights(x.dtype) @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, num_in, num_out)
    shape = (x.shape[0], num_out, *(size * (2 if doubled else 1) for size in x.shape[2:]))
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    most = _tiles_of_a_part(x, num_in, num_out)
    operands = (_channels_last(x), matrices, bias, slope, doubled, most, y.permute(0, 2, 3, 1))
    torch.ops.trainkit.winograd_convolve_(*operands)
    return y


@torch.autocast("cpu", enabled=False)
def _correlate(x: Tensor, g: Tensor, doubled: bool) -> Tensor:
    num_in, num_out = x.shape[1], g.shape[1]
    total = x.new_zeros(36, num_in, num_out)
    most = _tiles_of_a_part(x, num_in, num_out)
    torch.ops.trainkit.winograd_correlate_(_channels_last(x), _channels_last(g), doubled, most, total)
    weight = _of_weights(x.dtype).t() @ total.view(36, -1)
    return weight.view(3, 3, num_in, num_out).permute(3, 2, 0, 1).contiguous()


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _tiles_of_a_part(x: Tensor, num_in: int, num_out: int) -> int:
    return max(32, MATRIX_BYTES // (36 * max(num_in, num_out) * x.element_size()))


@cache
def _of_weights(dtype: torch.dtype) -> Tensor:
    """[36, 9]: what transforms 3x3 weights."""
    rows = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
    one_side = torch.tensor(rows, dtype=torch.float64) / 24
    return torch.kron(one_side, one_side).to(dtype)
