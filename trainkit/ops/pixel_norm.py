"""Bias, leaky ReLU and the pixel norm of Karras et al. (ICLR 2018, arXiv 1710.10196, section 4.2) in one pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainkit.errors import ConfigError, UsageError
from trainkit.ops import library, mode
from trainkit.ops.dtypes import LOW
from trainkit.ops.layout import is_channels_last


def bias_leaky_relu_pixel_norm(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    slope: float = 0.2,
    clamp: float | None = None,
    eps: float = 1e-8,
    norm: bool = True,
) -> Tensor:
    """Computes a / sqrt(mean of a^2 over channels + eps) with a = clamp(leaky_relu(x + bias)).

    bf16 and fp16 are computed in fp32 and rounded once. Only x is saved for the backward pass. Differentiable twice (a
    third derivative raises UsageError; with norm=False any number of times).

    Args:
        x: [B, C, ...] of any floating dtype.
        bias: [C], of any floating dtype; None: no bias.
        slope: of the negative side, in 0 .. 1.
        clamp: the largest magnitude of a, which prevents overflow of later layers in fp16; None: not limited.
        eps: added to the mean square.
        norm: False: the result is a itself.

    Returns:
        A tensor of the shape and dtype of x.

    Raises:
        ConfigError: for a bias or numbers that do not match.
    """
    _check(x, bias, slope, clamp)
    if not _is_fused("pixel_norm" if norm else "bias_leaky_relu", x):
        return bias_leaky_relu_pixel_norm_reference(x, bias, slope=slope, clamp=clamp, eps=eps, norm=norm)
    bias = None if bias is None else bias.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    if norm and is_channels_last(x):
        pixels = x.permute(0, 2, 3, 1)
        normed = torch.ops.trainkit.pixel_norm(pixels.flatten(0, 2), bias, slope, clamp, eps)
        return normed.view(pixels.shape).permute(0, 3, 1, 2)
    x = x.contiguous()
    if norm:
        return torch.ops.trainkit.pixel_norm(x, bias, slope, clamp, eps)
    return torch.ops.trainkit.bias_leaky_relu(x, bias, slope, clamp)


def pixel_norm(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Computes x / sqrt(mean of x^2 over channels + eps); see `bias_leaky_relu_pixel_norm`.

    Args:
        x: [B, C, ...] of any floating dtype.
        eps: added to the mean square.

    Returns:
        A tensor of the shape and dtype of x.

    Example:
        >>> pixel_norm(torch.tensor([[3.0, 4.0]]))
        tensor([[0.8485, 1.1314]])
    """
    return bias_leaky_relu_pixel_norm(x, slope=1.0, eps=eps)


def bias_leaky_relu_pixel_norm_reference(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    slope: float = 0.2,
    clamp: float | None = None,
    eps: float = 1e-8,
    norm: bool = True,
) -> Tensor:
    """`bias_leaky_relu_pixel_norm` in plain PyTorch, differentiable any number of times."""
    if bias is not None:
        x = x + bias.to(x.dtype).view(-1, *[1] * (x.dim() - 2))
    if slope != 1.0:
        x = F.leaky_relu(x, slope)
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return _normed(x, eps) if norm else x


def _normed(x: Tensor, eps: float) -> Tensor:
    if x.dtype in LOW:
        # 256^2 is infinite in fp16; and this form saves x for the backward pass, not an fp32 copy of it.
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        return (x * torch.rsqrt(norm.square() / x.shape[1] + eps)).to(x.dtype)
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)


def _is_fused(op: str, x: Tensor) -> bool:
    # The CPU's kernels vectorize over pixels, which does not help with one pixel per sample.
    return mode.is_fused(op, x) and (x.dim() > 2 or x.device.type != "cpu")


def _check(x: Tensor, bias: Tensor | None, slope: float, clamp: float | None) -> None:
    if x.dim() < 2 or not x.is_floating_point() or (bias is not None and bias.shape != x.shape[1:2]):
        shape = None if bias is None else list(bias.shape)
        raise ConfigError(
            f"pixel norm of {x.dtype} {list(x.shape)} with bias {shape}: they must be floats [B, C, ...] and [C]"
        )
    if not 0.0 <= slope <= 1.0 or (clamp is not None and not clamp > 0.0):
        raise ConfigError(f"pixel norm with slope={slope}, clamp={clamp}: they must be 0 <= slope <= 1 and clamp > 0")


# -- fakes and derivatives ---------------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, *ctx.options = inputs
    ctx.save_for_backward(x, bias)


def _save_second(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, x, bias, *ctx.options = inputs
    ctx.save_for_backward(g, x, bias)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, bias = ctx.saved_tensors
    grad_x = torch.ops.trainkit.pixel_norm_backward(g.contiguous(), x, bias, *ctx.options)
    return grad_x, _summed(grad_x, bias), None, None, None


def _second(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    g, x, bias = ctx.saved_tensors
    grad_g, grad_x = torch.ops.trainkit.pixel_norm_backward_backward(v.contiguous(), g, x, bias, *ctx.options)
    return grad_g, grad_x, _summed(grad_x, bias), None, None, None


def _rectifier_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, bias = ctx.saved_tensors
    grad_x = torch.ops.trainkit.bias_leaky_relu_backward(g.contiguous(), x, bias, *ctx.options)
    return grad_x, _summed(grad_x, bias), None, None


def _rectifier_second(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    # Linear in g, and in x piecewise constant.
    _, x, bias = ctx.saved_tensors
    grad_g = torch.ops.trainkit.bias_leaky_relu_backward(v.contiguous(), x, bias, *ctx.options)
    return grad_g, None, None, None, None


def _no_third_order(ctx: Any, *_: Tensor) -> None:
    raise UsageError("trainkit.ops.pixel_norm can be differentiated twice; for more, use ops=reference")


def _summed(grad_x: Tensor, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else grad_x.sum(dim=[0, *range(2, grad_x.dim())], dtype=bias.dtype)


@library.on_load
def _register() -> None:
    register_fake, register_autograd = torch.library.register_fake, torch.library.register_autograd
    first, second, third = (f"trainkit::pixel_norm{suffix}" for suffix in ("", "_backward", "_backward_backward"))
    register_fake(first, lambda x, *_: torch.empty_like(x))
    register_fake(second, lambda g, x, *_: torch.empty_like(x))
    register_fake(third, lambda v, g, x, *_: (torch.empty_like(x), torch.empty_like(x)))
    register_autograd(first, _backward, setup_context=_save)
    register_autograd(second, _second, setup_context=_save_second)
    register_autograd(third, _no_third_order)
    first, second = "trainkit::bias_leaky_relu", "trainkit::bias_leaky_relu_backward"
    register_fake(first, lambda x, *_: torch.empty_like(x))
    register_fake(second, lambda g, x, *_: torch.empty_like(x))
    register_autograd(first, _rectifier_backward, setup_context=_save)
    register_autograd(second, _rectifier_second, setup_context=_save_second)
