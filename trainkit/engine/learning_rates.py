"""LearningRates: sets an optimizer's learning rates from a schedule."""

from collections.abc import Callable

import torch

from trainkit.optim.groups import Groups, hyperparameters

ScheduleFunction = Callable[[int, int], float]


class LearningRates:
    """The learning rates of an optimizer's groups: their first values, times a factor by position.

    Args:
        optimizer: whose groups are set.
        schedule: (position, batch size) -> factor; None: the rates stay what the optimizer, or its user, sets.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: ScheduleFunction | None) -> None:
        self.schedule = schedule
        self._optimizer = optimizer
        self._first = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, position: int, batch_size: int) -> float:
        """Sets the rates for the step of `batch_size` samples from `position` on; returns that of the first group."""
        groups = self._optimizer.param_groups
        assert self.schedule is not None
        factor = self.schedule(position, batch_size)
        self._first += [float(group["lr"]) for group in groups[len(self._first) :]]  # added since
        for group, first in zip(groups, self._first, strict=True):
            group["lr"] = first * factor
        return float(groups[0]["lr"])

    def current(self) -> float:
        """The rate of the first group."""
        return float(self._optimizer.param_groups[0]["lr"])

    def groups(self) -> Groups:
        """The hyperparameters of each group; under a schedule, with the rate that it multiplies."""
        groups = hyperparameters(self._optimizer)
        if self.schedule is not None:
            for group, first in zip(groups, self._first, strict=False):  # a group that was just added has its own
                group["lr"] = first
        return groups
