"""Means: weighted means of metrics over steps; values on a GPU stay there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainkit.errors import ConfigError

SKIPPED = "skipped"


@dataclass(frozen=True)
class Last:
    """A metric of which the last value is logged and not the mean, such as a learning rate.

    Args:
        value: a number, or a tensor of one element, which is read at once: that waits for its device.

    Example:
        >>> means = Means()
        >>> for temperature in (1.0, 0.7):
        ...     means.add({"loss": 2.0, "temperature": Last(temperature)}, weight=8)
        >>> means.take()
        {'loss': (32.0, 16.0), 'temperature': (0.7, 1.0)}
    """

    value: Tensor | float

    def __float__(self) -> float:
        return float(self.value)


class Means:
    """Sums of `metric * weight` by name, and sums of the weights: their ratio, summed over ranks first, is the mean.

    A value that is not finite does not count where its step was skipped and a metric says so: `d_skipped=1.0` applies
    to all names that begin with `d_`, and `skipped` to every name. A weight of 0 (a rank without a sample) counts for
    nothing. Of a `Last` the newest value is the sum, with weight 1.
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}  # name -> [sum, sum of weights]
        self._on_device: dict[tuple[str, ...], Tensor] = {}  # by names, which have the same order in most steps

    def add(self, metrics: Mapping[str, Any], weight: float) -> None:
        """Adds the metrics of one step. Waits for the device only to read the tensor of a `Last`.

        Args:
            metrics: numbers, tensors of one element, or a `Last` of either, by name.
            weight: of this step in the means, such as the number of samples in this rank's local batch.

        Raises:
            ConfigError: naming a metric that is no number.
        """
        numbers, tensors = {}, {}
        for name, value in metrics.items():
            if isinstance(value, Last):
                self._sums[name] = [number_of(name, value.value), 1.0]
                continue
            if isinstance(value, Tensor) and not value.is_cpu and value.numel() == 1:
                tensors[name] = value
            else:
                numbers[name] = number_of(name, value)
            self._sums.setdefault(name, [0.0, 0.0])
        skipped = tuple(name.removesuffix(SKIPPED) for name in numbers if numbers[name] and name.endswith(SKIPPED))
        if skipped:  # the device was waited for already, or it would not be known
            numbers |= {name: float(value) for name, value in tensors.items()}
            tensors = {}
        if weight:
            self._add_numbers(numbers, weight, skipped)
            self._add_tensors(tensors, weight)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added since the last `take`; the same on all ranks that add the same names."""
        return not self._sums

    def take(self) -> dict[str, tuple[Tensor | float, float]]:
        """Returns the sums since the last call, and resets them.

        Returns:
            name -> (sum of value * weight, sum of weights).
        """
        taken: dict[str, tuple[Tensor | float, float]] = {
            name: (total, weights) for name, (total, weights) in self._sums.items()
        }
        for names, sums in self._on_device.items():
            for name, on_device in zip(names, sums, strict=True):
                total, weights = taken[name]
                taken[name] = total + on_device, weights
        self.reset()
        return taken

    def reset(self) -> None:
        """Drops the sums, such as those of steps before a run went back to a checkpoint."""
        self._sums, self._on_device = {}, {}

    def _add_numbers(self, numbers: Mapping[str, float], weight: float, skipped: tuple[str, ...]) -> None:
        for name, number in numbers.items():
            if math.isfinite(number) or not name.startswith(skipped or ("\0",)):
                self._count(name, number * weight, weight)

    def _add_tensors(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        if not tensors:
            return
        values = torch.stack([_as_float(value) for value in tensors.values()])
        sums = self._on_device.setdefault(
            tuple(tensors), torch.zeros(len(tensors), dtype=torch.float64).to(values.device)
        )
        sums.add_(values, alpha=weight)
        for name in tensors:
            self._count(name, 0.0, weight)

    def _count(self, name: str, total: float, weight: float) -> None:
        sums = self._sums[name]
        sums[0] += total
        sums[1] += weight


def number_of(name: str, value: Any) -> float:
    """Converts a metric to a float.

    Args:
        name: the name of the metric, for messages.
        value: a number, or a tensor or array of one element.

    Returns:
        Its value.

    Raises:
        ConfigError: naming the metric, for anything else.
    """
    try:
        if isinstance(value, Tensor):
            return float(value.item())
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several elements
        shape = getattr(value, "shape", None)
        given = repr(value) if shape is None else f"{type(value).__name__} of shape {[*shape]}"
        raise ConfigError(f"metric {name}={given}: must be a number, or a tensor or array of one element") from None


def _as_float(value: Tensor) -> Tensor:
    value = value.detach().reshape(())
    return value if value.is_floating_point() else value.double()
