"""Softmax cross-entropy over many classes that does not store probabilities.

The forward pass reads the logits once (maximum and sum of exponentials together) and keeps two numbers per row; the
backward pass reads them again and writes the gradient. Storing the gradient in the forward pass instead would move more
bytes, since it still has to be multiplied by the incoming gradient; and in fp16, where that gradient contains the loss
scale, it would underflow before it is scaled.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainkit.errors import ConfigError, UsageError
from trainkit.ops import library, mode


def cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = -100, in_place: bool = False) -> Tensor:
    """Computes the sum of -log softmax(logits)[label] over the rows whose label is not `ignore_index`.

    Differentiable once; a second derivative raises UsageError, but works with ops=reference.

    Args:
        logits: [N, V] of any floating dtype.
        labels: int64 [N].
        ignore_index: the label of rows that do not count.
        in_place: the backward pass writes the gradient over the logits' storage, so no second [N, V] is needed. They
            keep their values until then; afterwards they and every view of them contain the gradient. Autograd raises
            an error for any other function that saved them, and for a second backward pass. No effect without gradient.

    Returns:
        A scalar, in fp32 (fp64 for fp64), as computed.

    Raises:
        ConfigError: for shapes or dtypes that do not match.
        UsageError: for `in_place` on a leaf.
        RuntimeError: on the CPU, for a label that is neither a class nor `ignore_index`; on CUDA, where an error would
            wait for the device, its loss and its row's gradient are NaN.

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([1, -100]))
        tensor(1.3863)
    """
    _check(logits, labels, in_place)
    if not mode.is_fused("cross_entropy", logits):
        return cross_entropy_reference(logits, labels, ignore_index)
    losses, _ = torch.ops.trainkit.cross_entropy(logits.contiguous(), labels.contiguous(), ignore_index, in_place)
    return losses.sum()


def cross_entropy_reference(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """`cross_entropy` in plain PyTorch, differentiable any number of times."""
    wide = logits.to(_accumulated_in(logits))
    return F.cross_entropy(wide, labels, ignore_index=ignore_index, reduction="sum")


def _accumulated_in(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _check(logits: Tensor, labels: Tensor, in_place: bool) -> None:
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ConfigError(
            f"cross_entropy of logits {list(logits.shape)} and labels {list(labels.shape)}: they must be [N, V] and "
            f"[N]; use flatten(0, 1)"
        )
    if not logits.is_floating_point() or labels.dtype != torch.int64:
        raise ConfigError(
            f"cross_entropy of {logits.dtype} logits and {labels.dtype} labels: they must be floating-point and "
            f"torch.int64"
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
    # So that autograd raises an error where the logits were saved too, and in a second backward pass.
    torch.autograd.graph.increment_version(logits)
    logits = logits.detach()
    torch.ops.trainkit.cross_entropy_backward_(grad, logits, statistics, labels, ctx.ignore_index)
    return logits, None, None, None


def _no_second_order(ctx: Any, grad: Tensor) -> None:
    raise UsageError("trainkit.ops.cross_entropy can be differentiated once only; for more, use ops=reference")
