"""Means of a step's metrics over the steps since they were last taken; what is on a GPU stays there."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainkit.errors import ConfigError

SKIPPED = "skipped"


class Last(float):
    """A metric of which the last value is logged, and no mean: what a run is at, such as its learning rate.

    >>> runtime.log(step, loss=loss, temperature=trainkit.Last(0.7))
    """


class Means:
    """Sums of `metrics * share` by name, and of the shares: their ratio, summed over ranks first, is the mean.

    A value that is not finite does not count where its step was skipped and says so: `d_skipped=1.0` speaks for all
    names that begin with `d_`, and `skipped` for every name. A rank without a sample counts for nothing. Of a `Last`
    the newest value is the sum, with a share of 1.
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}  # name -> [sum, sum of shares]
        self._on_device: dict[tuple[str, ...], Tensor] = {}  # by names, which come in the same order in most steps

    def add(self, metrics: Mapping[str, Any], share: float) -> None:
        """The metrics of one step, numbers or tensors of one element. Never waits for the device.

        Raises ConfigError naming a metric that is no number.
        """
        numbers, tensors, levels = {}, {}, {}
        for name, value in metrics.items():
            if isinstance(value, Last):
                levels[name] = float(value)
            elif isinstance(value, Tensor) and not value.is_cpu and value.numel() == 1:
                tensors[name] = value
            else:
                numbers[name] = number_of(name, value)
        skipped = tuple(name.removesuffix(SKIPPED) for name in numbers if numbers[name] and name.endswith(SKIPPED))
        if skipped:  # the device was waited for already, or it would not be known
            numbers |= {name: float(value) for name, value in tensors.items()}
            tensors = {}
        for name in metrics:
            if name not in self._sums:
                self._sums[name] = [0.0, 0.0]
        for name, level in levels.items():
            self._sums[name] = [level, 1.0]
        if not share:
            return
        for name, number in numbers.items():
            if math.isfinite(number) or not name.startswith(skipped or ("\0",)):
                self._count(name, number * share, share)
        if tensors:
            values = torch.stack([_as_float(value) for value in tensors.values()])
            sums = self._on_device.setdefault(
                tuple(tensors), torch.zeros(len(tensors), dtype=torch.float64).to(values.device)
            )
            sums.add_(values, alpha=share)
            for name in tensors:
                self._count(name, 0.0, share)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added since they were last taken; the same on all ranks that give the same names."""
        return not self._sums

    def take(self) -> dict[str, tuple[Tensor | float, float]]:
        """name -> (sum of value * share, sum of shares) of every name since the last call, which is then forgotten."""
        taken: dict[str, tuple[Tensor | float, float]] = {
            name: (total, shares) for name, (total, shares) in self._sums.items()
        }
        for names, sums in self._on_device.items():
            for name, part in zip(names, sums, strict=True):
                total, shares = taken[name]
                taken[name] = total + part, shares
        self.forget()
        return taken

    def forget(self) -> None:
        """Steps that are not to be told: a run went back to before them."""
        self._sums, self._on_device = {}, {}

    def _count(self, name: str, total: float, share: float) -> None:
        sums = self._sums[name]
        sums[0] += total
        sums[1] += share


def number_of(name: str, value: Any) -> float:
    """`value` as a float. Raises ConfigError, naming the metric, for what is no number."""
    try:
        if isinstance(value, Tensor):
            return float(value.item())
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several elements
        shape = getattr(value, "shape", None)
        given = repr(value) if shape is None else f"{type(value).__name__} of shape {[*shape]}"
        raise ConfigError(f"metric {name}={given}: allowed is a number, or a tensor or array of one element") from None


def _as_float(value: Tensor) -> Tensor:
    value = value.detach().reshape(())
    return value if value.is_floating_point() else value.double()
