"""Pruning: masks over weights while training goes on."""

from trainkit.prune.magnitude import Cubic, Magnitude, lowest

__all__ = ["Cubic", "Magnitude", "lowest"]
