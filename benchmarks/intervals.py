"""Intervals over held-out samples: time beside scipy's bootstrap, and how often they cover the truth.

    python benchmarks/intervals.py

Both compute the BCa interval of a mean of 1,000 resamples, in turns in one process on one thread. Coverage is counted
on simulated data whose truth is known; 95 % is meant.
"""

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import machine, write
from trainkit.evaluation import NUM_RESAMPLES, SampleRanks, SampleSums, bootstrap

SIZES = (1_000, 100_000, 1_000_000)
MOST_OF_SCIPY = 100_000  # a million would take minutes
NUM_REPETITIONS = 2000
Draw = Callable[[np.random.Generator], SampleSums | SampleRanks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=NUM_REPETITIONS, help="of each row of coverage")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args()
    facts = machine()
    results: list[dict[str, Any]] = [timed(num) for num in SIZES]
    results += [covered(name, draw, truth, options.repetitions) for name, (draw, truth) in cases().items()]
    write("intervals", facts, results, options.output)


def timed(num: int, num_turns: int = 3) -> dict[str, Any]:
    """Seconds of each, the best of some turns, and the memory beyond the samples themselves."""
    values = np.random.default_rng(num).exponential(size=num)
    samples = SampleSums.means({"mean": values})
    ours, theirs = [], []
    for _ in range(num_turns):
        start = time.perf_counter()
        found = bootstrap(samples)["mean"]
        ours.append(time.perf_counter() - start)
        if num <= MOST_OF_SCIPY:
            start = time.perf_counter()
            # A batch bounds its memory, as ours is.
            other = stats.bootstrap((values,), np.mean, n_resamples=NUM_RESAMPLES, method="BCa", batch=50, rng=0)
            theirs.append(time.perf_counter() - start)
    tracemalloc.start()
    bootstrap(samples)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    half = 1.96 * values.std() / num**0.5
    row = {
        "num": num,
        "seconds": min(ours),
        "peak_mb": peak / 1e6,
        "width_of_normal": (found.high - found.low) / half / 2,
    }
    if theirs:
        low, high = other.confidence_interval
        row |= {"scipy_seconds": min(theirs), "scipy_width_of_normal": float(high - low) / half / 2}
    return row


def cases() -> dict[str, tuple[Draw, float]]:
    """By name, what draws samples, and the true value of their metric."""

    def share(num: int, truth: float) -> Draw:
        return lambda draw: SampleSums.means({"m": draw.random(num) < truth})

    def skewed(num: int) -> Draw:
        return lambda draw: SampleSums.means({"m": draw.exponential(size=num)})

    def sentences(draw: np.random.Generator) -> SampleSums:
        """200 documents of 1 to 20 tokens, of which each is right with a probability of the document's own."""
        lengths, easy = draw.integers(1, 21, 200), draw.beta(2, 1, 200)
        right = draw.binomial(lengths, easy)
        return SampleSums.means({"m": right / lengths}, weights=lengths, unit="documents")

    def ratio(draw: np.random.Generator) -> SampleSums:
        """F1 of 300 sentences whose counts are drawn; the truth is 2 * 1.4 / (2 + 2)."""
        both, missed, wrong = (draw.poisson(mean, 300) for mean in (1.4, 0.6, 0.6))
        rows = np.stack([both, both + missed, both + wrong], axis=1)
        return SampleSums(rows=rows, of_sums=lambda sums: {"m": 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2])})

    def ranks(draw: np.random.Generator) -> SampleRanks:
        x, y = draw.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 150).T
        return SampleRanks(name="m", truth=x, predictions=y)

    spearman = 6 / np.pi * np.arcsin(0.7 / 2)  # of a normal distribution with this correlation
    return {
        "a share of 0.9, 12 samples (exact)": (share(12, 0.9), 0.9),
        "a share of 0.9, 50 samples": (share(50, 0.9), 0.9),
        "a share of 0.9, 500 samples": (share(500, 0.9), 0.9),
        "a skewed mean, 20 samples": (skewed(20), 1.0),
        "a skewed mean, 200 samples": (skewed(200), 1.0),
        "a skewed mean, 10,000 samples (in groups)": (skewed(10_000), 1.0),
        "accuracy of tokens, 200 documents": (sentences, 2 / 3),
        "F1, 300 sentences": (ratio, 0.7),
        "Spearman's correlation, 150 samples": (ranks, float(spearman)),
    }


def covered(name: str, draw: Draw, truth: float, num: int) -> dict[str, Any]:
    """The share of repetitions whose interval holds the truth, with its own binomial interval."""
    num_in_groups = min(num, 500) if "groups" in name else num
    inside = 0
    for number in range(num_in_groups):
        low, high = bootstrap(draw(np.random.default_rng((3, number))), seed=number)["m"].bounds
        inside += low <= truth <= high
    ends = stats.binomtest(inside, num_in_groups).proportion_ci()
    return {"case": name, "covered": inside / num_in_groups, "of": num_in_groups, "low": ends.low, "high": ends.high}


if __name__ == "__main__":
    main()
