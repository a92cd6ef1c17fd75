"""Budget: the time for which a run trains at most, on rank 0's clock."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from trainkit.distributed.ranks import Ranks
from trainkit.errors import require_above_zero

_AGREES_EVERY = 16  # steps; and after 2, 4 and 8


class Budget:
    """Counts the time since `start`, that of earlier processes of the run, evaluations and saves included.

    A learning-rate schedule is a function of the position, and a run that ends before its `num_samples` would end with
    a high rate. The ranks therefore agree, in `stretch`, on the factor by which the budget falls short of `num_samples`
    at the current speed, and schedules see positions times this factor.

    Args:
        minutes: of training; None: no limit.
        clock: gives seconds.

    Raises:
        ConfigError: unless `minutes` is above 0.
    """

    def __init__(self, minutes: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        require_above_zero(minutes=minutes)
        self.limit_s = math.inf if minutes is None else 60.0 * minutes
        self.factor = 1.0
        self._clock = clock
        self._before_s = 0.0
        self._limit_before_s: float | None = None
        self._began_at: float | None = None
        self._num_steps = 0
        self._marks: deque[tuple[int, float]] = deque()

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return self.limit_s < math.inf

    @property
    def spent_s(self) -> float:
        """Seconds used, by earlier processes too."""
        return self._before_s + (self._clock() - self._began_at if self._began_at is not None else 0.0)

    @property
    def was_spent(self) -> bool:
        """Whether earlier processes have used all of it; the same on all ranks."""
        return self._before_s >= self.limit_s

    @property
    def rest_s(self) -> float:
        """Seconds left."""
        return max(0.0, self.limit_s - self.spent_s)

    def start(self, position: int, num_samples: int) -> None:
        """Starts the clock, at the first call; training begins at `position` of `num_samples`."""
        if self._began_at is not None:
            return
        self._began_at = self._clock()
        if self.is_limited and position and self._limit_before_s != self.limit_s:
            # The factor for a new budget is known after some steps; until then, by the mean speed so far.
            self.factor = max(1.0, num_samples * self._before_s / (position * self.limit_s))

    def stretch(self, position: int, num_samples: int, ranks: Ranks) -> float:
        """Returns the factor on the positions that schedules see; call it once after each step.

        Collective every few steps.

        Args:
            position: samples done.
            num_samples: the recipe's.
            ranks: the processes that agree.
        """
        self._num_steps += 1
        if self._num_steps == 1:  # the first step does not count: it may compile
            self._marks.append((position, self.spent_s))
        elif self._num_steps % _AGREES_EVERY == 0 or self._num_steps in (2, 4, 8):
            self.factor = ranks.broadcast_object(self._shortfall(position, num_samples))
        return self.factor

    def _shortfall(self, position: int, num_samples: int) -> float:
        now_s = self.spent_s
        self._marks.append((position, now_s))
        while len(self._marks) > 2 and self._marks[1][1] < now_s / 2:  # the speed of the later half counts
            self._marks.popleft()
        first, first_s = self._marks[0]
        if position <= first or now_s <= first_s:
            return self.factor
        speed = (position - first) / (now_s - first_s)
        return max(1.0, num_samples / (position + max(0.0, self.limit_s - now_s) * speed))

    def state_dict(self) -> dict[str, Any]:
        """Seconds used, the limit and the factor."""
        limit_s = self.limit_s if self.is_limited else None
        return {"spent_s": self.spent_s, "limit_s": limit_s, "factor": self.factor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the state of the checkpoint that this process resumes.

        After a rewind to a checkpoint nothing changes: the time was spent.
        """
        if self._began_at is None:
            self._before_s = state.get("spent_s", 0.0)
            self._limit_before_s = state.get("limit_s")
            self.factor = state.get("factor", 1.0) if self.is_limited else 1.0
