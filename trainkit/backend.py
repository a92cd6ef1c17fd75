"""Backend: one module and its optimizer, as a strategy runs them."""

from typing import Any

import torch
from torch import Tensor, nn

from trainkit.errors import UsageError


class Backend:
    """One module and its optimizer, as a strategy runs them. An Engine drives it; users never see it.

    The order of a turn: for each micro-batch `begin`, forwards, `backward`; then `finish_gradients`, and `update` or
    `discard`. After the last `backward` the gradients are the sum over ranks divided by `gradient_divisor`.
    """

    gradient_divisor: float = 1.0

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer = module, optimizer
        self.trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}

    def begin(self, last: bool) -> None:
        """A micro-batch begins; `last`: its backward ends the turn's gradients."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output; gradients of it are reduced by `backward`."""
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradients of `loss`; the last of a turn also reduces them over ranks."""
        loss.backward()

    def finish_gradients(self, factor: Tensor | float, clip: float | None) -> Tensor:
        """Multiplies the gradients by `factor`, clips them to global norm `clip`; their norm before clipping."""
        gradients = [p.grad for p in self.trainable.values() if p.grad is not None]
        if not gradients:
            raise UsageError("the loss depends on no trainable parameter of the module: nothing to update")
        norms = torch._foreach_norm(gradients)
        norm = torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]
        is_one = isinstance(factor, float) and factor == 1.0
        if not is_one:
            norm = norm * factor
        if clip is not None:
            factor = factor * (clip / (norm + 1e-6)).clamp(max=1.0)
        if clip is not None or not is_one:
            torch._foreach_mul_(gradients, factor)
        return norm

    def update(self) -> None:
        """One optimizer step; the gradients are gone afterwards."""
        self.optimizer.step()
        self.discard()

    def discard(self) -> None:
        """Forgets the gradients."""
        # What optimizer.zero_grad() comes to; that costs a small step a twentieth more.
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                p.grad = None

    def retire(self) -> None:
        """Lets go of the module: hooks and buffers of the strategy are removed."""
