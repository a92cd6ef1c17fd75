"""Evaluation: what a number on held-out samples is worth: its interval, its baselines, and the verdict."""

from trainkit.evaluation.assessment import Assessment, Verdict
from trainkit.evaluation.bootstrap import NUM_RESAMPLES, bootstrap
from trainkit.evaluation.comparison import Better, Comparison
from trainkit.evaluation.interval import Interval
from trainkit.evaluation.samples import HeldOutSamples, SampleRanks, SampleSums, in_order
from trainkit.evaluation.seeds import OverSeeds

__all__ = [
    "NUM_RESAMPLES",
    "Assessment",
    "Better",
    "Comparison",
    "HeldOutSamples",
    "Interval",
    "OverSeeds",
    "SampleRanks",
    "SampleSums",
    "Verdict",
    "bootstrap",
    "in_order",
]


def __dir__() -> list[str]:
    return sorted(__all__)
