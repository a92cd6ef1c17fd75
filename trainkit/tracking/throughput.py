"""Samples per second of training alone, and the time left."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Throughput:
    """Speed over the last `window_s` seconds of training; what runs inside `paused()` does not count.

    >>> throughput = Throughput(start=0, num_samples=1000)      # at the first step
    >>> throughput.rates(position=320)                          # 2 s later
    {'samples_per_s': 160.0, 'eta_s': 4.25}
    """

    def __init__(
        self,
        *,
        start: int = 0,
        num_samples: int | None = None,
        window_s: float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._num_samples = num_samples
        self._window_s = window_s
        self._clock = clock
        self._paused_s = 0.0
        self._marks = deque([(clock(), start)])

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

        `position` counts samples of the global batches; call it where the device has caught up (after a reduction).
        """
        now = self._clock() - self._paused_s
        self._marks.append((now, position))
        while len(self._marks) > 2 and now - self._marks[1][0] >= self._window_s:
            self._marks.popleft()
        then, start = self._marks[0]
        if now <= then or position <= start:
            return {}
        speed = (position - start) / (now - then)
        if self._num_samples is None:
            return {"samples_per_s": speed}
        return {"samples_per_s": speed, "eta_s": max(self._num_samples - position, 0) / speed}
