"""The compiled passes of LAMB over many tensors at once; `trainkit.optim.Lamb` is their reference and their caller."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainkit.ops import library


@dataclass(frozen=True)
class LambTensors:
    """Pieces of parameters on one device: float32, contiguous, lists of the same length and sizes.

    bits: uint8 [ceil(numel / 8)] of each as `pack_bits` makes them, copies: bfloat16; tensors without elements where a
        piece has none.
    hyper: float64 [number of pieces, 8] on the CPU: 1 - b1, b1, 1 - b2, b2, scale, offset, weight decay, learning rate,
        for u = m / (scale sqrt(v) + offset) + decay w.
    """

    weights: Sequence[Tensor]
    exp_avg: Sequence[Tensor]
    exp_avg_sq: Sequence[Tensor]
    bits: Sequence[Tensor]
    copies: Sequence[Tensor]
    hyper: Tensor


def lamb_moments_(tensors: LambTensors, gradients: Sequence[Tensor], factor: Tensor | None) -> Tensor:
    """Takes the gradients, times the scalar `factor`, into the moments.

    Returns float64 [number of pieces, 2], on their device: the squared norms of weights and of updates, without what
    is masked. Raises RuntimeError for what the class does not allow.
    """
    return torch.ops.trainkit.lamb_moments_(
        tensors.weights, gradients, tensors.exp_avg, tensors.exp_avg_sq, tensors.bits, tensors.hyper, factor
    )


def lamb_apply_(tensors: LambTensors, squares: Tensor) -> None:
    """w = w - lr * ratio * u, and 0 where it is masked; then the copies. squares: of the whole parameters."""
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
