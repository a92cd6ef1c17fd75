"""Interval: where a metric would lie on other held-out samples of the same kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FEW = 20
"""Units below which an interval is too narrow more often than it says."""

Bounds = tuple[float, float]
Method = Literal["bootstrap", "binomial"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % confidence interval of one metric over held-out samples; of one trained model, not over seeds.

    Args:
        low: the lower end.
        high: the upper end.
        num: units that were resampled.
        unit: what these are, in the plural: `samples`, `documents`.
        num_resamples: of the bootstrap.
        method: `bootstrap`, or `binomial` for a share that resamples say too little about.
        differences: by baseline, the interval of metric minus baseline on the same samples.
    """

    low: float
    high: float
    num: int
    unit: str = "samples"
    num_resamples: int = 0
    method: Method = "bootstrap"
    differences: Mapping[str, Bounds] = field(default_factory=dict)

    @property
    def bounds(self) -> Bounds:
        """The two ends."""
        return self.low, self.high

    def source(self) -> str:
        """Says what it is of.

        Example:
            >>> Interval(low=0.1, high=0.2, num=872, num_resamples=1000).source()
            '95 % of 1,000 bootstrap resamples of 872 held-out samples'
            >>> Interval(low=0.8, high=1.0, num=12, method="binomial").source()
            '95 %, exact binomial, of 12 held-out samples'
        """
        of = f"of {self.num:,} held-out {self.unit}"
        if self.method == "binomial":
            return f"95 %, exact binomial, {of}"
        few = f": fewer than {FEW}, so that it is unreliable" if self.num < FEW else ""
        return f"95 % of {self.num_resamples:,} bootstrap resamples {of}{few}"

    def facts(self) -> dict[str, Any]:
        """Returns everything but the two ends, JSON-able."""
        return {
            "num": self.num,
            "unit": self.unit,
            "num_resamples": self.num_resamples,
            "method": self.method,
            "differences": {name: list(bounds) for name, bounds in self.differences.items()},
        }

    @classmethod
    def of(cls, bounds: Any, facts: Mapping[str, Any]) -> "Interval":
        """Makes one of its two ends and its `facts()`."""
        differences = {name: (ends[0], ends[1]) for name, ends in facts.get("differences", {}).items()}
        return cls(low=bounds[0], high=bounds[1], **{"num": 0, **facts, "differences": differences})
