"""Optimizers, learning-rate schedules, and averages of weights."""

from trainkit.optim.adamw import AdamW
from trainkit.optim.ema import ExponentialMovingAverage
from trainkit.optim.lamb import Lamb
from trainkit.optim.multi import MultiOptimizer
from trainkit.optim.schedule import Schedule

__all__ = ["AdamW", "ExponentialMovingAverage", "Lamb", "MultiOptimizer", "Schedule"]


def __dir__() -> list[str]:
    return sorted(__all__)
