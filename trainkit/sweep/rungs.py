"""Rungs: which trials go on, by asynchronous successive halving (Li et al. 2020, MLSys, algorithm 2) and Hyperband.

Optuna's pruners of these names end a trial for good: its source says that it cannot suspend and resume one. Here a
trial that is not among the best is paused, and goes on from its checkpoint once it is among the best of those that came
to the same rung.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rungs:
    """The rungs of a sweep: of R evaluations, trials are compared after R / eta, R / eta^2 ... of them.

    Args:
        num_evaluations: of a whole trial.
        eta: of so many trials one goes on, `reduction_factor`.
        num_brackets: 1: successive halving; more: Hyperband, whose bracket s begins at rung s.
    """

    num_evaluations: int
    eta: int = 3
    num_brackets: int = 1

    @classmethod
    def hyperband(cls, num_evaluations: int, eta: int = 3) -> "Rungs":
        """The rungs of Hyperband (Li et al. 2018, JMLR, algorithm 1).

        Args:
            num_evaluations: of a whole trial, R of the paper.
            eta: as of the class.
        """
        largest = 0
        while eta ** (largest + 1) <= num_evaluations:
            largest += 1
        return cls(num_evaluations, eta, largest + 1)

    def bracket_of(self, number: int) -> int:
        """The bracket of a trial, in turn, in proportion to how many each bracket starts with.

        Args:
            number: of the trial.
        """
        last = self.num_brackets - 1
        # Algorithm 1, line 3, with s counted from the bracket that stops earliest.
        sizes = [
            math.ceil(self.num_brackets / (last - s + 1) * self.eta ** (last - s)) for s in range(self.num_brackets)
        ]
        place = number % sum(sizes)
        for bracket, size in enumerate(sizes):
            if place < size:
                return bracket
            place -= size
        raise AssertionError

    def after(self, number: int) -> list[int]:
        """The numbers of evaluations after which a trial is compared with others.

        Args:
            number: of the trial.

        Example:
            >>> Rungs(num_evaluations=30).after(0)
            [1, 3, 10]
        """
        found, power = list[int](), self.eta
        while power <= self.num_evaluations:
            found.insert(0, self.num_evaluations // power)
            power *= self.eta
        return found[self.bracket_of(number) :]

    def goes_on(self, number: int, values: Mapping[int, Mapping[int, float]]) -> bool:
        """Whether a trial is among the best of those that came to its highest rung.

        Args:
            number: of the trial.
            values: of all trials, by their numbers, by how many evaluations; lower is better.
        """
        own, bracket = values.get(number, {}), self.bracket_of(number)
        reached = [at for at in self.after(number) if at in own]
        if not reached:
            return True
        at = reached[-1]
        return self._is_among(
            own[at], (each[at] for other, each in values.items() if at in each and self.bracket_of(other) == bracket)
        )

    def _is_among(self, value: float, all_values: Iterable[float]) -> bool:
        """Whether a value is one of the best of a rung, its first 1/eta."""
        found = sorted(_or_worst(each) for each in all_values)
        num_promoted = len(found) // self.eta
        return num_promoted > 0 and _or_worst(value) < math.inf and _or_worst(value) <= found[num_promoted - 1]


def _or_worst(value: float) -> float:
    return value if math.isfinite(value) else math.inf
