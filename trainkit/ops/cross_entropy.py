"""Softmax cross-entropy over many classes that keeps no probabilities.

The forward pass reads the logits once (maximum and sum of exponentials together) and keeps two numbers a row; the
backward pass reads them again and writes the gradient. Keeping the gradient of the forward pass instead, as some do,
would move more bytes, since the factor from above still has to be multiplied into it; and in fp16, where that factor is
the loss scale, it would round to 0 what the scale is there to save.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainkit.errors import ConfigError, UsageError
from trainkit.ops import library, mode


def cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = -100, in_place: bool = False) -> Tensor:
    """The sum of -log softmax(logits)[label] over the rows whose label is not `ignore_index`.

    logits: [N, V] of any floating dtype.  labels: int64 [N].  A scalar comes back, in fp32 (fp64 for fp64), in which
    the arithmetic is done too.
    in_place: the backward pass writes the gradient over the logits' storage, so that no second [N, V] is needed. They
        keep their values until then; afterwards they and every view of them hold the gradient. Whatever else has saved
        them for its own backward pass, and a second backward pass, is told so by autograd. No effect without gradient.

    Differentiable once; raises UsageError for a second derivative, which ops=reference has. Raises ConfigError for
    shapes or dtypes that do not fit, UsageError for `in_place` on a leaf. A label that is neither a class nor
    `ignore_index` raises RuntimeError on the CPU; on CUDA, where raising would wait for the device, its loss and its
    row's gradient are NaN.
    """
    _check(logits, labels, in_place)
    if not mode.is_fused("cross_entropy", logits):
        return cross_entropy_reference(logits, labels, ignore_index)
    losses, _ = torch.ops.trainkit.cross_entropy(logits.contiguous(), labels.contiguous(), ignore_index, in_place)
    return losses.sum()


def cross_entropy_reference(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """The same in plain PyTorch, differentiable any number of times."""
    wide = logits.to(_accumulated_in(logits))
    return F.cross_entropy(wide, labels, ignore_index=ignore_index, reduction="sum")


def _accumulated_in(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _check(logits: Tensor, labels: Tensor, in_place: bool) -> None:
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ConfigError(
            f"cross_entropy of logits {list(logits.shape)} and labels {list(labels.shape)}: allowed are [N, V] and "
            f"[N]; use flatten(0, 1)"
        )
    if not logits.is_floating_point() or labels.dtype != torch.int64:
        raise ConfigError(
            f"cross_entropy of {logits.dtype} logits and {labels.dtype} labels: allowed are floating logits and "
            f"torch.int64 labels"
        )
    if labels.device != logits.device:
        raise ConfigError(f"cross_entropy of logits on {logits.device} and labels on {labels.device}: use one device")
    if in_place and logits.requires_grad and not torch.compiler.is_compiling():
        base = logits._base if logits._base is not None else logits
        if base.is_leaf:
            raise UsageError(
                "cross_entropy(in_place=True) would destroy a leaf, such as a parameter: use in_place=False"
            )


@library.on_load
def _register() -> None:
    torch.library.register_fake("trainkit::cross_entropy", _fake)
    torch.library.register_fake("trainkit::cross_entropy_backward", lambda grad, logits, *_: torch.empty_like(logits))
    torch.library.register_fake("trainkit::cross_entropy_backward_", lambda *_: None)
    torch.library.register_autograd("trainkit::cross_entropy", _backward, setup_context=_save)
    torch.library.register_autograd("trainkit::cross_entropy_backward", _no_second_order)


def _fake(logits: Tensor, labels: Tensor, ignore_index: int, in_place: bool) -> tuple[Tensor, Tensor]:
    losses = logits.new_empty(logits.shape[:1], dtype=_accumulated_in(logits))
    return losses, losses.new_empty((*losses.shape, 2))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, labels, ctx.ignore_index, ctx.in_place = inputs
    ctx.save_for_backward(logits, output[1], labels)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, None, None, None]:
    if grad is None:
        return None, None, None, None
    logits, statistics, labels = ctx.saved_tensors
    if not ctx.in_place or torch.is_grad_enabled():
        gradient = torch.ops.trainkit.cross_entropy_backward(grad, logits, statistics, labels, ctx.ignore_index)
        return gradient, None, None, None
    # So that autograd tells whoever else saved the logits, and a second backward pass, that they are gone.
    torch.autograd.graph.increment_version(logits)
    logits = logits.detach()
    torch.ops.trainkit.cross_entropy_backward_(grad, logits, statistics, labels, ctx.ignore_index)
    return logits, None, None, None


def _no_second_order(ctx: Any, grad: Tensor) -> None:
    raise UsageError("trainkit.ops.cross_entropy can be differentiated once only; for more, use ops=reference")
