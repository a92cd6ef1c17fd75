"""The time left of a run whose steps do not all take as long."""

import math
from bisect import bisect_left
from collections.abc import Sequence


class TimeLeft:
    """From seconds a sample, measured at the costs seen so far, to those of the samples to come.

    costs: (position, cost) in order: each sample before that position, and after the one before, costs so much, in any
    unit.

    A cost that was not seen yet is bounded: a sample that costs twice as much takes as long as the nearest one seen at
    the least, and twice as long at the most. What is expected lies between, on the line through the two nearest costs
    seen, or, of a single one, in the geometric middle.

    >>> left = TimeLeft([(1000, 1.0), (2000, 4.0)])
    >>> left.measured(position=500, seconds=0.1)    # a sample
    >>> left.after(500)                             # at the least, expected, at the most
    (150.0, 250.0, 450.0)
    """

    def __init__(self, costs: Sequence[tuple[int, float]]) -> None:
        self._ends = [end for end, _ in costs]
        self._costs = [cost for _, cost in costs]
        self._seconds: dict[float, float] = {}  # by cost, of a sample

    def cost(self, position: int) -> float:
        """Of the sample just before `position`."""
        return self._costs[min(bisect_left(self._ends, position), len(self._costs) - 1)]

    def measured(self, position: int, seconds: float) -> None:
        """A sample just before `position` took so long."""
        self._seconds[self.cost(position)] = seconds

    def after(self, position: int) -> tuple[float, float, float] | None:
        """Seconds from `position` to the end: at the least, expected, at the most. None before any measurement."""
        if not self._seconds:
            return None
        totals, start = [0.0, 0.0, 0.0], position
        for end, cost in zip(self._ends, self._costs, strict=True):
            if end > start:
                totals = [
                    total + (end - start) * seconds for total, seconds in zip(totals, self._of(cost), strict=True)
                ]
                start = end
        return totals[0], totals[1], totals[2]

    def _of(self, cost: float) -> tuple[float, float, float]:
        if cost in self._seconds:
            return (self._seconds[cost],) * 3
        seen = sorted(self._seconds, key=lambda other: abs(math.log(other / cost)))
        nearest = self._seconds[seen[0]]
        low, high = sorted((nearest, nearest * cost / seen[0]))
        expected = math.sqrt(low * high)
        if len(seen) > 1:
            slope = (nearest - self._seconds[seen[1]]) / (seen[0] - seen[1])
            expected = min(max(nearest + slope * (cost - seen[0]), low), high)
        return low, expected, high
