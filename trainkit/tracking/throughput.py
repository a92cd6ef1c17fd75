"""Throughput: samples per second of training alone, and the time left."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from trainkit.tracking.time_left import TimeLeft

WINDOW_S = 30.0


class Throughput:
    """Speed over the last 30 seconds of training, without the time inside `paused()`.

    The first steps, which are slower, count only until there are others.

    Args:
        start: samples before the first step.
        num_samples: the position at which training ends; None: not known.
        costs: (position, cost) as for `TimeLeft`, where samples do not all take the same time; the speed is then that
            of samples of equal cost.
        clock: returns seconds, monotonically.

    Example:
        >>> times = iter([0.0, 2.0, 2.0])
        >>> throughput = Throughput(num_samples=1000, clock=lambda: next(times))
        >>> throughput.rates(position=320)  # after 2 s
        {'samples_per_s': 160.0, 'eta_s': 4.25}
    """

    def __init__(
        self,
        *,
        start: int = 0,
        num_samples: int | None = None,
        costs: Sequence[tuple[int, float]] = (),
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._left = TimeLeft(costs or [(num_samples, 1.0)]) if num_samples is not None else None
        self._clock = clock
        self._paused_s, self._num_paused = 0.0, 0
        self._waits: dict[str, float] = {}  # seconds by name, since the last `fractions`
        self._deadline = math.inf
        self._marks = deque([(clock(), start)])
        self._shared_at = self._marks[0][0]
        self._is_first = True

    def end_within(self, seconds: float) -> None:
        """Limits the time left, for training that ends after so many seconds if not before.

        Args:
            seconds: from now, pauses included.
        """
        self._deadline = self._clock() + seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager: excludes the time spent inside (evaluation, saving) from the speed."""
        began = self._clock()
        self._num_paused += 1
        try:
            yield
        finally:
            self._num_paused -= 1
            self._paused_s += self._clock() - began

    def waited(self, name: str, seconds: float) -> None:
        """Counts a wait of this process, unless it is paused.

        Args:
            name: of what it waited for, such as `data_wait`.
            seconds: of the wait.
        """
        if not self._num_paused:
            self._waits[name] = self._waits.get(name, 0.0) + seconds

    def fractions(self) -> tuple[dict[str, float], float]:
        """The fraction of each wait in the time since the last call, pauses excluded.

        Returns:
            0 to 1, by name, empty before any time has passed; and the seconds of that time.
        """
        now = self._clock() - self._paused_s
        passed, self._shared_at = now - self._shared_at, now
        waits = self._waits
        self._waits = dict.fromkeys(waits, 0.0)
        return {name: min(seconds / passed, 1.0) for name, seconds in waits.items()} if passed > 0 else {}, passed

    def rates(self, position: int) -> dict[str, float]:
        """Measures the speed and predicts the time left. Call it when the device has caught up (after a reduction).

        Args:
            position: samples of the global batches so far.

        Returns:
            `samples_per_s`, and `eta_s` (seconds) where the end is known. Where the costs of later samples were not
            measured yet, `eta_s` is an estimate between `eta_low_s` and `eta_high_s`. Empty before any time or sample
            has passed.
        """
        now = self._clock() - self._paused_s
        self._marks.append((now, position))
        if len(self._marks) == 3 and self._is_first:
            self._is_first = False
            self._marks.popleft()
        while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW_S:
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
        else:  # the change itself may have been what was slow
            self._marks = deque([(now, position)])
        left = self._left.after(position)
        if left is not None:
            low, rates["eta_s"], high = left
            if low < high:
                rates |= {"eta_low_s": low, "eta_high_s": high}
        rest_s = max(0.0, self._deadline - self._clock())
        return {name: min(rate, rest_s) if name.startswith("eta") else rate for name, rate in rates.items()}
