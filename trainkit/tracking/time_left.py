"""TimeLeft: the remaining time of a run whose steps do not all take the same time."""

import math
from bisect import bisect_left
from collections.abc import Sequence


class TimeLeft:
    """Predicts the time of the samples to come from the time per sample measured at the costs seen so far.

    A cost that was not measured yet is bounded: a sample of twice the cost takes at least as long as the nearest one
    measured, and at most twice as long. The estimate lies between, on the line through the two nearest costs measured,
    or, with a single one, at the geometric mean.

    Args:
        costs: (position, cost) in ascending order: each sample before that position, and after the previous one, has
            that cost, in any unit.

    Example:
        >>> left = TimeLeft([(1000, 1.0), (2000, 4.0)])
        >>> left.measured(position=500, seconds=0.1)  # per sample
        >>> left.after(500)  # at least, expected, at most
        (150.0, 250.0, 450.0)
    """

    def __init__(self, costs: Sequence[tuple[int, float]]) -> None:
        self._ends = [end for end, _ in costs]
        self._costs = [cost for _, cost in costs]
        self._seconds: dict[float, float] = {}  # by cost, of a sample

    def cost(self, position: int) -> float:
        """Returns the cost of the sample just before `position`."""
        return self._costs[min(bisect_left(self._ends, position), len(self._costs) - 1)]

    def measured(self, position: int, seconds: float) -> None:
        """Records a measurement.

        Args:
            position: samples so far.
            seconds: time of one sample just before `position`.
        """
        self._seconds[self.cost(position)] = seconds

    def after(self, position: int) -> tuple[float, float, float] | None:
        """Predicts the time from `position` to the end.

        Args:
            position: samples so far.

        Returns:
            Seconds: at least, expected, at most. None before any measurement.
        """
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
