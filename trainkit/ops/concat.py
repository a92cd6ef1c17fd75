"""Concatenation with bias and activation, and the minibatch standard deviation of the progressive GAN."""

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainkit.errors import ConfigError, UsageError
from trainkit.ops import library, mode
from trainkit.ops.dtypes import widened

MAX_TENSORS = 8
Activation = Literal["linear", "relu", "leaky_relu"]
SLOPES: dict[Activation, float] = {"linear": 1.0, "relu": 0.0, "leaky_relu": 0.2}


def concat(
    tensors: Sequence[Tensor], dim: int = 1, *, bias: Tensor | None = None, activation: Activation = "linear"
) -> Tensor:
    """Computes activation(cat(tensors, dim) + bias), with each element read and written once.

    Without a bias and an activation it is torch.cat. Differentiable any number of times.

    Args:
        tensors: 1 to 8, of equal shapes except in `dim`.
        dim: the dimension of concatenation.
        bias: one element for each index of the result in `dim`; None: no bias.
        activation: linear, relu or leaky_relu (slope 0.2).

    Returns:
        The result, in the widest dtype of the tensors.

    Raises:
        ConfigError: for tensors, a bias or an activation that do not match.

    Example:
        >>> concat([torch.tensor([[1.0]]), torch.tensor([[-2.0, 3.0]])], activation="relu")
        tensor([[1., 0., 3.]])
    """
    dim = _check(tensors, dim, bias, activation)
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors))
    tensors = [x.to(dtype) for x in tensors]
    is_plain = bias is None and activation == "linear"
    if is_plain or not mode.is_fused("concat", tensors[0]):
        return concat_reference(tensors, dim, bias=bias, activation=activation)
    wide = torch.promote_types(dtype, torch.float32)
    bias = None if bias is None else bias.to(wide).contiguous()
    return torch.ops.trainkit.concat([x.contiguous() for x in tensors], dim, bias, SLOPES[activation])


def concat_reference(
    tensors: Sequence[Tensor], dim: int = 1, *, bias: Tensor | None = None, activation: Activation = "linear"
) -> Tensor:
    """`concat` in plain PyTorch."""
    y = torch.cat(list(tensors), dim)
    if bias is not None:
        y = y + bias.to(y.dtype).view(-1, *[1] * (y.dim() - dim - 1))
    if activation == "relu":
        return F.relu(y)
    return y if activation == "linear" else F.leaky_relu(y, SLOPES[activation])


def append_minibatch_stddev(x: Tensor, group: int) -> Tensor:
    """Appends a channel with the standard deviation within each group of samples.

    One number per group: the mean over C, H, W of sqrt(variance within the group + 1e-8), in fp32 for bf16 and fp16
    (Karras et al., ICLR 2018, arXiv 1710.10196, section 3). Groups are strided: with B/group groups, sample i is in
    group i mod (B/group). The local batch of a rank is strided too, so its groups are those of the global batch as long
    as none is divided between ranks. Differentiable twice; a third derivative raises UsageError.

    Args:
        x: [B, C, H, W].
        group: samples per group.

    Returns:
        [B, C+1, H, W].

    Raises:
        ConfigError: where B is not a multiple of `group`.
    """
    if x.dim() != 4 or not x.is_floating_point() or group < 1:
        raise ConfigError(
            f"minibatch stddev of {x.dtype} {list(x.shape)}, group={group}: x must be floats [B, C, H, W]"
        )
    if len(x) % group:
        raise ConfigError(f"minibatch stddev: {len(x)} samples do not make groups of {group}")
    if not mode.is_fused("minibatch_stddev", x):
        return append_minibatch_stddev_reference(x, group)
    return torch.ops.trainkit.minibatch_stddev(x.contiguous(), group)


def append_minibatch_stddev_reference(x: Tensor, group: int) -> Tensor:
    """`append_minibatch_stddev` in plain PyTorch, differentiable any number of times."""
    num, channels, height, width = x.shape
    grouped = widened(x).view(group, num // group, channels, height, width)
    deviation = (grouped.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    statistic = deviation.repeat(group).view(num, 1, 1, 1).expand(num, 1, height, width)
    return torch.cat([x, statistic.to(x.dtype)], dim=1)


def _check(tensors: Sequence[Tensor], dim: int, bias: Tensor | None, activation: str) -> int:
    """Returns `dim` counted from the front. Raises ConfigError for operands that do not match."""
    if not 1 <= len(tensors) <= MAX_TENSORS:
        raise ConfigError(f"concat of {len(tensors)} tensors: it must be 1 to {MAX_TENSORS}")
    if activation not in SLOPES:
        raise ConfigError(f"concat with activation={activation}: it must be one of {', '.join(SLOPES)}")
    num_dims = tensors[0].dim()
    if not -num_dims <= dim < num_dims:
        raise ConfigError(f"concat of {list(tensors[0].shape)} along dim={dim}, which does not exist")
    dim %= num_dims
    alike = {(*x.shape[:dim], None, *x.shape[dim + 1 :]) for x in tensors}
    if len(alike) > 1 or not all(x.is_floating_point() for x in tensors):
        shapes = ", ".join(f"{x.dtype} {list(x.shape)}" for x in tensors)
        raise ConfigError(
            f"concat along dim={dim} of {shapes}: they must be floats, of equal size in all other dimensions"
        )
    total = sum(x.shape[dim] for x in tensors)
    if bias is not None and bias.shape != (total,):
        raise ConfigError(f"concat with bias {list(bias.shape)}: the result has {total} elements in dim={dim}")
    return dim


# -- fakes and derivatives ---------------------------------------------------------------------------------------------


def _appended(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1] + 1, *x.shape[2:]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, ctx.dim, bias, ctx.slope = inputs
    ctx.sizes, ctx.bias_dtype = [x.shape[ctx.dim] for x in tensors], None if bias is None else bias.dtype
    # The result has the sign of the activation's input.
    ctx.save_for_backward(*[] if ctx.slope == 1.0 else [output])


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    for y in ctx.saved_tensors:
        # As [1, 1, all]: no bias is added here.
        flat = torch.ops.trainkit.bias_leaky_relu_backward(
            g.contiguous().view(1, 1, -1), y.view(1, 1, -1), None, ctx.slope, None
        )
        g = flat.view(y.shape)
    others = [i for i in range(g.dim()) if i != ctx.dim]
    grad_bias = None
    if ctx.bias_dtype is not None:
        grad_bias = g.sum(dim=others, dtype=ctx.bias_dtype) if others else g.to(ctx.bias_dtype)
    return list(g.split(ctx.sizes, ctx.dim)), None, grad_bias, None


def _save_stddev(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.group = inputs
    ctx.save_for_backward(*tensors)


def _stddev_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return torch.ops.trainkit.minibatch_stddev_backward(g.contiguous(), x, ctx.group), None


def _stddev_second(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    g, x = ctx.saved_tensors
    return *torch.ops.trainkit.minibatch_stddev_backward_backward(v.contiguous(), g, x, ctx.group), None


def _no_third_order(ctx: Any, *_: Tensor) -> None:
    raise UsageError("trainkit.ops.append_minibatch_stddev can be differentiated twice; for more, use ops=reference")


@library.on_load
def _register() -> None:
    register_fake, register_autograd = torch.library.register_fake, torch.library.register_autograd
    register_fake("trainkit::concat", lambda tensors, dim, bias, slope: torch.cat(tensors, dim).contiguous())
    register_autograd("trainkit::concat", _backward, setup_context=_save)
    first, second, third = (f"trainkit::minibatch_stddev{suffix}" for suffix in ("", "_backward", "_backward_backward"))
    register_fake(first, lambda x, group: _appended(x))
    register_fake(second, lambda g, x, group: torch.empty_like(x))
    register_fake(third, lambda v, g, x, group: (_appended(x), torch.empty_like(x)))
    register_autograd(first, _stddev_backward, setup_context=_save_stddev)
    register_autograd(second, _stddev_second, setup_context=_save_stddev)
    register_autograd(third, _no_third_order)
