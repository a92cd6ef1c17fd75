"""StepResult: the result of one step of an engine."""

from dataclasses import dataclass

from torch import Tensor

from trainkit.tracking.means import Last


@dataclass(frozen=True)
class StepResult:
    """The result of a step, over the global batch. Tensors stay on the device: reading one waits for it.

    Args:
        loss: [], the weighted mean; 0 where all weights are 0.
        grad_norm: [], before clipping.
        lr: of the first parameter group.
        skipped: whether loss or gradient was not finite: parameters, optimizer state and averages are unchanged.
        loss_scale: of fp16; None in other precisions.
    """

    loss: Tensor
    grad_norm: Tensor
    lr: float
    skipped: bool
    loss_scale: float | None

    def metrics(self, prefix: str = "") -> dict[str, Tensor | float | Last]:
        """Returns loss, grad_norm, lr and skipped (and loss_scale in fp16) by name, each after `prefix`."""
        values: dict[str, Tensor | float | Last] = {
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "lr": Last(self.lr),
            "skipped": float(self.skipped),
        }
        if self.loss_scale is not None:
            values["loss_scale"] = Last(self.loss_scale)
        return {prefix + name: value for name, value in values.items()} if prefix else values
