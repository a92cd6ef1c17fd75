"""Bootstrap: intervals of metrics over held-out samples, by resampling these."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainkit.evaluation.interval import FEW, Bounds, Interval
from trainkit.evaluation.samples import Array, HeldOutSamples, SampleSums

NUM_RESAMPLES = 1000
MOST_UNITS = 4096
"""Of more units, whose metrics are functions of sums, so many groups of equal size, drawn by chance, are resampled."""

_LEVEL = 0.95
_COUNTS_AT_ONCE = 1 << 21  # 16 MB
_SMALLEST = 1e-12  # of a metric: variation below it is rounding


def bootstrap(samples: HeldOutSamples, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> dict[str, Interval]:
    """Computes the 95 % interval of each metric, and of its differences from baselines on the same samples.

    Whole units are drawn with replacement, as many as there are, and every metric is computed of each resample; the
    ends are quantiles, corrected for bias and skewness (BCa: Efron 1987). A share of fewer than 20 units, or of units
    that are all alike, gets the exact binomial interval (Clopper and Pearson 1934). Of more than 4,096 units, groups of
    them are drawn: units are independent, so the sums of groups vary as those of units do, and the standard error is
    known to 1 %.

    Args:
        samples: what the metrics are computed from.
        seed: of the resamples; the result is a function of it and of the samples.
        num_resamples: of which the interval is.

    Returns:
        By metric; without those of which nothing can be said: of one unit, and of metrics that are not finite, or do
        not vary, in resamples.

    Example:
        >>> found = bootstrap(SampleSums.means({"error": np.arange(100.0)}), seed=1)
        >>> found["error"].source()
        '95 % of 1,000 bootstrap resamples of 100 held-out samples'
        >>> 43 < found["error"].low < 45 and 54 < found["error"].high < 56
        True
    """
    num = len(samples)
    if num < 2:
        return {}
    drawn = _grouped(samples, seed)
    model = _distributions(drawn, None, seed, num_resamples)
    others = {name: _distributions(drawn, name, seed, num_resamples) for name in drawn.baselines()}
    shares, found = samples.binomial(), {}
    for metric, own in model.items():
        bounds, is_exact = own.bounds(), metric in shares and (num < FEW or not own.varies)
        if is_exact:
            bounds = clopper_pearson(*shares[metric])
        if bounds is None or not (is_exact or own.varies):
            continue
        differences = {name: (own - other[metric]).bounds() for name, other in others.items()}
        found[metric] = Interval(
            low=bounds[0],
            high=bounds[1],
            num=num,
            unit=samples.unit,
            num_resamples=num_resamples,
            method="binomial" if is_exact else "bootstrap",
            differences={name: ends for name, ends in differences.items() if ends is not None},
        )
    return found


@dataclass(frozen=True)
class Distribution:
    """What a metric is, and what it would be of other units.

    Args:
        value: of all units.
        resampled: [R], of resamples.
        jackknife: [N], of all units but one.
    """

    value: float
    resampled: Array
    jackknife: Array

    def __sub__(self, other: "Distribution") -> "Distribution":
        return Distribution(
            self.value - other.value, self.resampled - other.resampled, self.jackknife - other.jackknife
        )

    @property
    def varies(self) -> bool:
        """Whether resamples differ by more than rounding."""
        return float(np.ptp(self.resampled)) > _SMALLEST * max(1.0, abs(self.value))

    def bounds(self) -> Bounds | None:
        """The ends of the BCa interval; None where a value is not finite."""
        if not (np.isfinite(self.value) and np.isfinite(self.resampled).all()):
            return None
        if not self.varies:
            return self.value, self.value
        from scipy import special  # takes a tenth of a second to import: where it is used

        below = (np.mean(self.resampled < self.value) + np.mean(self.resampled <= self.value)) / 2
        bias, tails = special.ndtri(below), special.ndtri([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        levels = special.ndtr(bias + (bias + tails) / (1 - self._acceleration() * (bias + tails)))
        if not np.isfinite(levels).all():  # all resamples are on one side of the value
            levels = np.array([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        low, high = np.quantile(self.resampled, levels)
        return float(low), float(high)

    def _acceleration(self) -> float:
        away = self.jackknife[np.isfinite(self.jackknife)]
        away = away.mean() - away
        squares = float(np.square(away).sum())
        return float((away**3).sum() / (6 * squares**1.5)) if squares > 0 else 0.0


def clopper_pearson(successes: int, num: int) -> Bounds:
    """Computes the exact 95 % interval of a binomial share.

    Example:
        >>> low, high = clopper_pearson(10, 10)
        >>> round(low, 4), high
        (0.6915, 1.0)
    """
    from scipy import special

    tail = (1 - _LEVEL) / 2
    low = special.betaincinv(successes, num - successes + 1, tail) if successes else 0.0
    high = special.betaincinv(successes + 1, num - successes, 1 - tail) if successes < num else 1.0
    return float(low), float(high)


def _grouped(samples: HeldOutSamples, seed: int) -> HeldOutSamples:
    """The units that are drawn: of many, groups whose sizes differ by one at most."""
    if not isinstance(samples, SampleSums) or len(samples) <= MOST_UNITS:
        return samples
    order = np.random.default_rng((seed, 1)).permutation(len(samples))
    return samples.grouped(order % MOST_UNITS)


def _distributions(
    samples: HeldOutSamples, baseline: str | None, seed: int, num_resamples: int
) -> dict[str, Distribution]:
    """By metric; resample r has the same units for the model and for every baseline."""
    parts = [samples.metrics(counts, baseline) for counts in _counts(len(samples), seed, num_resamples)]
    jackknife = samples.without_each(baseline)
    return {
        name: Distribution(value, np.concatenate([part[name] for part in parts]), jackknife[name])
        for name, value in samples.all_once(baseline).items()
    }


def _counts(num: int, seed: int, num_resamples: int) -> Iterator[Array]:
    """Yields how often each unit is in some of the resamples, [R, N]."""
    draw, at_once = np.random.default_rng((seed, 0)), max(1, _COUNTS_AT_ONCE // num)
    for first in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - first)
        places = draw.integers(0, num, (size, num)) + num * np.arange(size)[:, None]
        yield np.bincount(places.ravel(), minlength=size * num).reshape(size, num).astype(np.float64)
