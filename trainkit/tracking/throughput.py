"""Samples per second of training alone, and the time left."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from trainkit.tracking.time_left import TimeLeft


class Throughput:
    """Speed over the last `window_s` seconds of training; what runs inside `paused()` does not count.

    The first steps, which are slower, count only until there are others.

    costs: where samples do not all take as long, see `TimeLeft`: the speed is then of samples that cost as much.

    >>> throughput = Throughput(start=0, num_samples=1000)      # at the first step
    >>> throughput.rates(position=320)                          # 2 s later
    {'samples_per_s': 160.0, 'eta_s': 4.25}
    """

    def __init__(
        self,
        *,
        start: int = 0,
        num_samples: int | None = None,
        costs: Sequence[tuple[int, float]] = (),
        window_s: float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._left = TimeLeft(costs or [(num_samples, 1.0)]) if num_samples is not None else None
        self._window_s = window_s
        self._clock = clock
        self._paused_s = 0.0
        self._deadline = math.inf
        self._marks = deque([(clock(), start)])
        self._is_first = True

    def end_within(self, seconds: float) -> None:
        """Training ends after so many seconds, pauses included, if not before: no more time is left than that."""
        self._deadline = self._clock() + seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside (evaluation, saving) is not training."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused_s += self._clock() - began

    def rates(self, position: int) -> dict[str, float]:
        """`samples_per_s`, and `eta_s` where the end is known. Empty before any time or sample has passed.

        Where samples to come cost something that was not measured yet, `eta_s` is what is expected, and lies between
        `eta_low_s` and `eta_high_s`.
        `position` counts samples of the global batches; call it where the device has caught up (after a reduction).
        """
        now = self._clock() - self._paused_s
        self._marks.append((now, position))
        if len(self._marks) == 3 and self._is_first:
            self._is_first = False
            self._marks.popleft()
        while len(self._marks) > 2 and now - self._marks[1][0] >= self._window_s:
            self._marks.popleft()
        then, start = self._marks[0]
        if now <= then or position <= start:
            return {}
        speed = (position - start) / (now - then)
        rates = {"samples_per_s": speed}
        if self._left is None:
            return rates
        if self._left.cost(start + 1) == self._left.cost(position):
            self._left.measured(position, 1 / speed)
        else:  # what was slow here may have been the change itself
            self._marks = deque([(now, position)])
        left = self._left.after(position)
        if left is not None:
            low, rates["eta_s"], high = left
            if low < high:
                rates |= {"eta_low_s": low, "eta_high_s": high}
        rest_s = max(0.0, self._deadline - self._clock())
        return {name: min(rate, rest_s) if name.startswith("eta") else rate for name, rate in rates.items()}
