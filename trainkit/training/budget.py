"""Budget: the time that a run may train for, on rank 0's clock."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from trainkit.distributed.ranks import Ranks
from trainkit.errors import require_above_zero

_AGREES_EVERY = 16  # steps; and after 2, 4 and 8


class Budget:
    """Counts the time from `start` on, with that of earlier processes of the run; evaluations and saves included.

    minutes: None: without end. Raises ConfigError unless it is above 0.

    A schedule of learning rates is a function of the position, and a run that ends before its `num_samples` would end
    with a high rate. So the ranks agree now and then, in `stretch`, by what factor the budget will fall short of
    `num_samples` at the speed of now, and schedules see positions times this factor.
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
        return self.limit_s < math.inf

    @property
    def spent_s(self) -> float:
        return self._before_s + (self._clock() - self._began_at if self._began_at is not None else 0.0)

    @property
    def was_spent(self) -> bool:
        """Whether earlier processes have used it up; the same on all ranks."""
        return self._before_s >= self.limit_s

    @property
    def rest_s(self) -> float:
        return max(0.0, self.limit_s - self.spent_s)

    def start(self, position: int, num_samples: int) -> None:
        """Training begins at `position`, or begins again."""
        if self._began_at is not None:
            return
        self._began_at = self._clock()
        if self.is_limited and position and self._limit_before_s != self.limit_s:
            # Of another budget the factor is not known before some steps: until then, by the mean speed so far.
            self.factor = max(1.0, num_samples * self._before_s / (position * self.limit_s))

    def stretch(self, position: int, num_samples: int, ranks: Ranks) -> float:
        """The factor on the positions that schedules see, once after each step. Collective every few steps."""
        self._num_steps += 1
        if self._num_steps == 1:  # its own time does not count: it may have compiled something
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
        limit_s = self.limit_s if self.is_limited else None
        return {"spent_s": self.spent_s, "limit_s": limit_s, "factor": self.factor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """That of the checkpoint from which this process goes on. One that goes back to a checkpoint later has spent
        the time all the same."""
        if self._began_at is None:
            self._before_s = state.get("spent_s", 0.0)
            self._limit_before_s = state.get("limit_s")
            self.factor = state.get("factor", 1.0) if self.is_limited else 1.0
