"""StepRecord: what an engine gives the non-finite guard at the end of a step."""

from typing import NamedTuple, Protocol

from torch import Tensor


class StepRecord(NamedTuple):
    """One step of one engine, on this rank. A tuple, since one is made in every step. Tensors stay on the device.

    Args:
        engine: the engine's name.
        grad_accumulation_steps: micro-batches of the step.
        loss: [], the mean over the global batch.
        grad_norm: [], of the reduced gradient, before clipping.
        skipped: whether the step updated nothing because the loss or the gradient is not finite; None where neither
            was read from the device.
        own_losses: [] each, the losses of this rank's micro-batches.
        norms: names of parameters, and [number of names] norms of their reduced gradients; None where they are unknown.
        loss_scale: of fp16 after this step; None in other precisions.
        can_lower_scale: whether a gradient that is not finite may be an overflow that a lower loss scale avoids.
    """

    engine: str
    grad_accumulation_steps: int
    loss: Tensor
    grad_norm: Tensor
    skipped: bool | None
    own_losses: list[Tensor]
    norms: tuple[list[str], Tensor] | None
    loss_scale: float | None
    can_lower_scale: bool


class StepGuard(Protocol):
    """What an engine needs of the guard: see `trainkit.health.guard.Guard`."""

    @property
    def is_examining(self) -> bool:
        """Whether a batch is computed again, without any update."""

    def gate(self, loss: Tensor, is_read: bool) -> Tensor | None:
        """The tensor that must be finite, beside the gradient norm, for a step to update; None: nothing is read."""

    def see(self, record: StepRecord) -> None:
        """The end of a step. Raises NonFiniteError, by the policy."""
