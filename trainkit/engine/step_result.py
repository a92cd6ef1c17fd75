"""StepResult: what a turn of an engine came to."""

from dataclasses import dataclass

from torch import Tensor

from trainkit.tracking.means import Last


@dataclass(frozen=True)
class StepResult:
    """What a turn came to, over the global batch. Tensors stay on the device: reading one waits for it.

    loss: weighted mean; 0 where nothing had a weight.  grad_norm: before clipping.  lr: of the first parameter group.
    skipped: loss or gradient was not finite, so parameters, optimizer state and averages are as before.
    """

    loss: Tensor
    grad_norm: Tensor
    lr: float
    skipped: bool
    loss_scale: float | None

    def metrics(self, prefix: str = "") -> dict[str, Tensor | float]:
        """loss, grad_norm, lr, skipped (and loss_scale in fp16), each name after `prefix`."""
        values: dict[str, Tensor | float] = {
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "lr": Last(self.lr),
            "skipped": float(self.skipped),
        }
        if self.loss_scale is not None:
            values["loss_scale"] = Last(self.loss_scale)
        return {prefix + name: value for name, value in values.items()} if prefix else values
