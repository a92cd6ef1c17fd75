"""The compiled passes of LAMB over many tensors at once; `trainkit.optim.Lamb` calls them, and is their reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainkit.ops import library


@dataclass(frozen=True)
class LambTensors:
    """Ranges of parameters on one device: float32, contiguous, lists of the same length and sizes.

    Args:
        weights: the parameters.
        exp_avg: first moments.
        exp_avg_sq: second moments.
        bits: uint8 [ceil(numel / 8)] of each, as made by `pack_bits`; a tensor without elements where there is no mask.
        copies: bfloat16, of each; a tensor without elements where there is no copy.
        hyper: float64 [number of ranges, 8] on the CPU: 1 - b1, b1, 1 - b2, b2, scale, offset, weight decay, learning
            rate, for u = m / (scale sqrt(v) + offset) + decay w.
    """

    weights: Sequence[Tensor]
    exp_avg: Sequence[Tensor]
    exp_avg_sq: Sequence[Tensor]
    bits: Sequence[Tensor]
    copies: Sequence[Tensor]
    hyper: Tensor


def lamb_moments_(tensors: LambTensors, gradients: Sequence[Tensor], factor: Tensor | None) -> Tensor:
    """Updates the moments with the gradients.

    Args:
        tensors: the ranges.
        gradients: of each.
        factor: a scalar that the gradients are multiplied by; None: 1.

    Returns:
        float64 [number of ranges, 2], on their device: the squared norms of weights and of updates, without masked
        elements.

    Raises:
        RuntimeError: for tensors that `LambTensors` does not permit.
    """
    return torch.ops.trainkit.lamb_moments_(
        tensors.weights, gradients, tensors.exp_avg, tensors.exp_avg_sq, tensors.bits, tensors.hyper, factor
    )


def lamb_apply_(tensors: LambTensors, squares: Tensor) -> None:
    """Updates the weights, w = w - lr * ratio * u, and 0 where masked; then the copies.

    Args:
        tensors: the ranges.
        squares: as returned by `lamb_moments_`, summed over whole parameters.
    """
    torch.ops.trainkit.lamb_apply_(
        tensors.weights, tensors.exp_avg, tensors.exp_avg_sq, tensors.bits, tensors.copies, tensors.hyper, squares
    )


@library.on_load
def _register() -> None:
    @torch.library.register_fake("trainkit::lamb_moments_")
    def _(weights: Sequence[Tensor], *unused: Any) -> Tensor:
        return weights[0].new_empty((len(weights), 2), dtype=torch.float64)

    @torch.library.register_fake("trainkit::lamb_apply_")
    def _(*unused: Any) -> None:
        return None
