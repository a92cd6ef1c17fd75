"""Comparison: a metric beside one baseline, and whether it is better by more than chance."""

import math
from dataclasses import dataclass
from typing import Literal

from trainkit.evaluation.interval import Bounds, Interval
from trainkit.tracking.console import number

Better = Literal["lower", "higher"]
Result = Literal["better", "worse", "alike"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A metric and one baseline.

    Args:
        metric: its name.
        value: of the model.
        baseline: its name.
        reference: its value.
        better: which direction is.
        interval: of the metric; None: it has none, and values are compared as they are.
    """

    metric: str
    value: float
    baseline: str
    reference: float
    better: Better
    interval: Interval | None = None

    @property
    def difference(self) -> Bounds | None:
        """The interval of metric minus baseline; None: there is none.

        Of a baseline that is known on the same samples it is a paired one; of a number, that of the metric, moved.
        """
        if self.interval is None:
            return None
        low, high = self.interval.bounds
        return self.interval.differences.get(self.baseline, (low - self.reference, high - self.reference))

    @property
    def result(self) -> Result:
        """Whether the model is better or worse, or alike, so that chance may have made the difference.

        Example:
            >>> Comparison(metric="loss", value=2.0, baseline="counts", reference=3.0, better="lower").result
            'better'
        """
        if not (math.isfinite(self.value) and math.isfinite(self.reference)):
            return "worse"
        away = self.value - self.reference
        low, high = self.difference or (away, away)
        if self.better == "lower":
            low, high = -high, -low
        return "better" if low > 0 else "worse" if high < 0 else "alike"

    def __str__(self) -> str:
        named = f"{self.baseline} {number(self.reference)}"
        if self.result != "alike":
            return f"{named} is {'better' if self.result == 'worse' else 'worse'}"
        low, high = self.difference or (0.0, 0.0)
        if low == high:
            return f"{named} is as good"
        away = number(self.value - self.reference)
        return f"{named} is as good: the difference of {away} [{number(low)}, {number(high)}] may be chance"
