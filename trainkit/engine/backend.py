"""Backend: one module and its optimizer, as a strategy runs them."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trainkit.engine.gradient_reduction import GradientReduction
from trainkit.engine.sharded_tensors import ShardedTensors, num_bytes
from trainkit.errors import UsageError


class Backend:
    """A step of one module and its optimizer, as a strategy runs it. Driven by an Engine.

    The order of a step: for each micro-batch `begin`, forward passes, `backward`; then `update`. After the last
    `backward` the gradients are the sum over ranks divided by `gradient_divisor`, whole or sharded.

    Args:
        tensors: the module's parameters and its optimizer's state.
        reduction: how gradients are summed over ranks; None leaves nothing to choose.
        gradient_divisor: what gradients are divided by when they are reduced.
    """

    adds_to_sums = False
    """Whether `own_sums`, known after the backward pass, is part of the step's small all-reduce."""
    needs_samples = False
    """Whether every micro-batch must have a sample on every rank."""
    gathers_parameters = False
    """Whether a forward pass waits for other ranks, which hold parts of the parameters."""
    reads_every_step = False
    """Whether `update` waits for the device in any case."""
    norms: tuple[list[str], Tensor] | None = None
    """Names and norms [len(names)] of the last step's gradients that this rank holds; None where they are not known."""

    def __init__(
        self, tensors: ShardedTensors, reduction: GradientReduction | None = None, *, gradient_divisor: float = 1.0
    ) -> None:
        self.tensors, self.reduction = tensors, reduction or GradientReduction()
        self.gradient_divisor = gradient_divisor
        self.module, self.optimizer, self.parameters = tensors.module, tensors.optimizer, tensors.parameters
        self.gradient_bytes = 0
        self._require_grad = [p.requires_grad for p in self.parameters.values()]
        self.trainable = {name: p for name, p in self.parameters.items() if p.requires_grad}

    # -- a step ------------------------------------------------------------------------------------------------------

    def begin(self, last: bool) -> None:
        """Begins a micro-batch; `last`: its backward completes the step's gradients."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output; gradients of it are reduced by `backward`."""
        return self.module(*args, **kwargs)

    def input_gradient(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The module's output for `x`, which requires a gradient, and that of the output's sum; both differentiable."""
        output = self.module(x, *args, **kwargs)
        (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return output, gradient

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradients of `loss`; the last of a step also reduces them over ranks."""
        loss.backward()

    def backward_of_nothing(self, loss: Tensor, last: bool) -> None:
        """As `backward`, of a loss in which nothing counts: takes part, and adds zeros whatever its gradients are."""
        hooks = [leaf.register_hook(_zero) for leaf in self._leaves_in_use()]
        try:
            self.backward(loss, last)
        finally:
            for hook in hooks:
                hook.remove()

    def follow_requires_grad(self) -> None:
        """Takes over which parameters require a gradient now.

        Raises UsageError where that is another set than at setup, and the strategy or the optimizer cannot follow.
        """
        now = [p.requires_grad for p in self.parameters.values()]
        if now != self._require_grad:
            before = dict(zip(self.parameters, self._require_grad, strict=True))
            self._follow([name for name, p in self.parameters.items() if p.requires_grad != before[name]])
            self._require_grad = now
            self.trainable = {name: p for name, p in self.parameters.items() if p.requires_grad}

    def leaves(self) -> dict[str, Tensor]:
        """By name, the tensors that this rank's own gradients come to before any reduction. Collective."""
        return dict(self.trainable)

    def own_sums(self) -> Tensor | None:
        """[n]: what this rank adds to the step's small all-reduce, where the backend `adds_to_sums`."""
        return None

    def update(
        self, factor: Tensor | float, max_grad_norm: float | None, *, sums: Tensor | None, gate: Tensor | None
    ) -> tuple[Tensor, bool]:
        """Multiplies the gradients by `factor`, clips them to `max_grad_norm`, and makes an optimizer step.

        sums: the sum of `own_sums()` over ranks.  gate: the step is left out if this scalar or the norm is not finite,
        which waits for the device; without it nothing is read.
        Returns the norm before clipping, and whether the step was skipped. The gradients are gone afterwards.
        """
        named = self._local_gradients()
        gradients = list(named.values())
        if not self.gradient_bytes:
            self.gradient_bytes = sum(num_bytes(gradient) for gradient in gradients)
        norm = self._norm(named, sums)
        is_one = isinstance(factor, float) and factor == 1.0
        if not is_one:
            norm = norm * factor
        skipped = gate is not None and not (math.isfinite(norm.item()) and math.isfinite(gate.item()))
        if not skipped:
            if max_grad_norm is not None:
                factor = factor * (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            if gradients and (max_grad_norm is not None or not is_one):
                torch._foreach_mul_(gradients, _as_factor(factor, gradients[0]))
            self.optimizer.step()
        self.discard()
        return norm, skipped

    def discard(self) -> None:
        """Forgets the gradients."""
        # What optimizer.zero_grad() comes to; that costs a small step a twentieth more.
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                p.grad = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Parameters take no gradient meanwhile."""
        # The objects are held, not their names: a parameter that its user froze must stay so afterwards.
        held = [p for p in self.module.parameters() if p.requires_grad]
        for p in held:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in held:
                p.requires_grad_(True)

    def retire(self) -> None:
        """Lets go of the module: hooks and buffers of the strategy are removed."""

    # -- inside ------------------------------------------------------------------------------------------------------

    def _follow(self, changed: list[str]) -> None:
        """The parameters `changed` were thawed or frozen. Raises UsageError where that cannot be followed."""
        held = {p for group in self.optimizer.param_groups for p in group["params"]}
        for name in changed:
            if self.parameters[name].requires_grad and self.parameters[name] not in held:
                raise UsageError(
                    f"{name!r} requires a gradient since setup, and the optimizer does not hold it: give setup an "
                    f"optimizer of all parameters, or call optimizer.add_param_group"
                )

    def _leaves_in_use(self) -> list[Tensor]:
        """The tensors that the gradients of a forward pass, which was made, come to."""
        return list(self.trainable.values())

    def _norm(self, gradients: Mapping[str, Tensor], sums: Tensor | None) -> Tensor:
        norms = torch.stack(torch._foreach_norm(list(gradients.values())))
        self.norms = list(gradients), norms
        return torch.linalg.vector_norm(norms) if len(norms) > 1 else norms[0]

    def _local_gradients(self) -> dict[str, Tensor]:
        gradients = {name: p.grad for name, p in self.trainable.items() if p.grad is not None}
        if not gradients:
            raise UsageError("the loss depends on no trainable parameter of the module: nothing to update")
        return gradients


def _zero(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else torch.zeros_like(gradient)


def _as_factor(factor: Tensor | float, gradient: Tensor) -> Tensor | float:
    return factor.to(gradient.device) if isinstance(factor, Tensor) else factor
