"""Patience: early stopping, after a number of evaluations in a row without improvement."""

import math
from collections.abc import Mapping
from typing import Any


class Patience:
    """Counts evaluations without improvement.

    Args:
        limit: evaluations in a row; None: no limit.

    >>> patience = Patience(2)
    >>> for step, value in ((10, 5.0), (20, 5.0), (30, 7.0)):
    ...     patience.see(step, value)
    >>> patience.is_exhausted, patience.best_step
    (True, 10)
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.best_step = 0
        self._best = math.inf
        self._num_since = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether the limit was reached."""
        return self.limit is not None and self._num_since >= self.limit

    def see(self, step: int, value: float | None) -> None:
        """Takes an evaluation into account: lower is better; None, a value that is not finite, is no improvement."""
        if value is not None and value < self._best:
            self._best, self.best_step, self._num_since = value, step, 0
        else:
            self._num_since += 1

    def state_dict(self) -> dict[str, Any]:
        """The best value, its step, and the number of evaluations since."""
        best = self._best if math.isfinite(self._best) else None
        return {"best": best, "best_step": self.best_step, "num_since": self._num_since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the state of a checkpoint."""
        best = state.get("best")
        self._best = math.inf if best is None else best
        self.best_step, self._num_since = state.get("best_step", 0), state.get("num_since", 0)
