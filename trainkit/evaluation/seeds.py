"""OverSeeds: a metric of several runs that differ in the seed, and whether its mean beats a baseline."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from trainkit.evaluation.comparison import Better, Result
from trainkit.evaluation.interval import Bounds
from trainkit.tracking.console import number


@dataclass(frozen=True)
class OverSeeds:
    """The values of a metric, one for each seed.

    Args:
        values: of the runs.
    """

    values: Sequence[float]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """The standard deviation, of a sample; None of one run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def interval(self) -> Bounds | None:
        """The 95 % t interval of the mean over seeds; None of one run.

        Example:
            >>> low, high = OverSeeds([0.8, 0.9]).interval()
            >>> round(low, 3), round(high, 3)
            (0.215, 1.485)
        """
        if self.spread is None:
            return None
        from scipy import special

        num = len(self.values)
        half = float(special.stdtrit(num - 1, 0.975)) * self.spread / math.sqrt(num)
        return self.mean - half, self.mean + half

    def against(self, baseline: Sequence[float], better: Better) -> Result | None:
        """Compares with a baseline, by the t interval of the differences; None of one run.

        Args:
            baseline: its value in each run.
            better: which direction is.
        """
        away = OverSeeds([mine - theirs for mine, theirs in zip(self.values, baseline, strict=True)]).interval()
        if away is None:
            return None
        low, high = away if better == "higher" else (-away[1], -away[0])
        return "better" if low > 0 else "worse" if high < 0 else "alike"

    def statement(self, metric: str, name: str, baseline: Sequence[float], better: Better) -> str:
        """Says in one line whether the mean beats a baseline by more than the seeds differ.

        Args:
            metric: its name.
            name: of the baseline.
            baseline: its value in each run.
            better: which direction is.
        """
        result, num = self.against(baseline, better), len(self.values)
        named = f"{name} {number(statistics.fmean(baseline))}"
        if result is None:
            return f"{metric}: one seed says nothing about others; give 2 or more to compare with {named}"
        low, high = self.interval() or (math.nan, math.nan)
        does = {"better": "beats", "worse": "is worse than", "alike": "does not beat"}[result]
        by = " by more than the seeds differ" if result != "worse" else ""
        wide = ": two seeds give a wide one" if num == 2 else ""
        return (
            f"{metric}: the mean over {num} seeds, {number(self.mean)} [{number(low)}, {number(high)}] (95 % t interval"
            f"{wide}), {does} {named}{by}"
        )
