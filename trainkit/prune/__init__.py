"""Pruning: masks over weights during training."""

from trainkit.prune.magnitude import Cubic, Magnitude, lowest

__all__ = ["Cubic", "Magnitude", "lowest"]


def __dir__() -> list[str]:
    return sorted(__all__)
