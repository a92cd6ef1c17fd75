"""Reproduction: a run made again from its manifest, and the comparison of two runs to the bit."""

from trainkit.reproduction.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
