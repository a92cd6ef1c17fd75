"""Memory: the bytes that one rank holds of a model, predicted or counted."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank.

    Args:
        parameters: of parameters.
        gradients: of gradients.
        optimizer: of optimizer state; None: not known.

    >>> print(Memory(parameters=4_000_000, gradients=2_000_000, optimizer=None))
    parameters 4.0 MB, gradients 2.0 MB, optimizer ?
    """

    parameters: int
    gradients: int
    optimizer: int | None

    def twice(self) -> "Memory":
        """The same in float64."""
        return Memory(2 * self.parameters, 2 * self.gradients, None if self.optimizer is None else 2 * self.optimizer)

    def __str__(self) -> str:
        optimizer = "?" if self.optimizer is None else in_words(self.optimizer)
        return f"parameters {in_words(self.parameters)}, gradients {in_words(self.gradients)}, optimizer {optimizer}"


def state_tensors(optimizer: torch.optim.Optimizer) -> int | None:
    """The number of tensors of a parameter's size that `optimizer` keeps for each; None: not known.

    >>> state_tensors(torch.optim.AdamW([torch.zeros(1)]))
    2
    """
    given = optimizer.defaults
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return 3 if given["amsgrad"] else 2
    if isinstance(optimizer, torch.optim.SGD):
        return 1 if given["momentum"] else 0
    if isinstance(optimizer, torch.optim.RMSprop):
        return 1 + bool(given["momentum"]) + bool(given["centered"])
    return {"Lamb": 2, "NAdam": 2, "RAdam": 2, "Adadelta": 2, "Adagrad": 1, "Adamax": 2}.get(type(optimizer).__name__)


def in_words(num_bytes: int) -> str:
    """A number of bytes in decimal units.

    >>> in_words(1_234_567)
    '1.2 MB'
    """
    value, unit = float(num_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
