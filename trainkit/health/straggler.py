"""Stragglers: what a step costs each rank before it waits for others, and who is persistently slower."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping

import torch

from trainkit.health.verdict import Sign

WINDOW_STEPS = 50
WINDOW_S = 30.0
NUM_WINDOWS = 3
RATIO = 1.2
LEAST_S = 1e-3

KINDS: dict[str, Callable[[Sign, Sign], float]] = {
    "data": lambda then, now: (now.data_s - then.data_s) / max(now.steps - then.steps, 1),
    "compute": lambda then, now: (now.compute_s - then.compute_s) / max(now.num_computed - then.num_computed, 1),
}
MEANING = {"data": "waiting for its batch", "compute": "from its batch to the first call that waits for other ranks"}


class StepTimes:
    """Totals of this rank's steps: time spent in waiting for batches, and from a batch to the first reduction.

    Afterwards ranks wait for one another, and all take as long as the slowest. On a GPU, events are recorded, and read
    once they have come about: the host never waits.
    """

    def __init__(self, device: torch.device) -> None:
        self.totals = (0, 0.0, 0, 0.0)
        """Steps, seconds of data; steps, seconds of compute. One object, so that another thread reads what fits."""
        self._is_cuda = device.type == "cuda"
        self._began: float | None = None
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._event: torch.cuda.Event | None = None
        self._compute_s = 0.0
        self._num_computed = 0

    def fetched(self, asked: float, arrived: float) -> None:
        """A step begins: its batch was asked for and arrived at these times of `time.perf_counter`."""
        steps, data_s, *_ = self.totals
        self.totals = (steps + 1, data_s + arrived - asked, self._num_computed, self._compute_s)
        self._begin(arrived)

    def meet(self) -> None:
        """The step's next call waits for other ranks."""
        if self._began is None:
            return
        if self._event is None:
            self._count(time.perf_counter() - self._began)
        else:
            self._events.append((self._event, _event()))
        self._began = None

    def _begin(self, arrived: float) -> None:
        self._began = arrived
        if self._is_cuda:
            while self._events and self._events[0][1].query():
                began, ended = self._events.popleft()
                self._count(began.elapsed_time(ended) / 1000)
            self._event = _event()

    def _count(self, seconds: float) -> None:
        self._compute_s += seconds
        self._num_computed += 1


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Stragglers:
    """Looks at totals of all ranks over windows of steps; one thread of one rank asks it.

    A rank is named once for data and once for compute: after `NUM_WINDOWS` windows running in which it took `RATIO`
    times as long as the median rank, and `LEAST_S` more.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._then: Mapping[int, Sign] = {}
        self._running: dict[tuple[str, int], int] = {}
        self._named: set[tuple[str, int]] = set()

    def is_due(self, steps: int) -> bool:
        """Whether a window ends now, at this rank's total of `steps`: 50 steps or 30 s, whichever is longer."""
        first = min((sign.steps for sign in self._then.values()), default=0)
        return steps - first >= WINDOW_STEPS and self._clock() - self._began >= WINDOW_S

    def window(self, now: Mapping[int, Sign]) -> list[str]:
        """Ends a window at the totals `now`; a sentence for each rank that is to be named."""
        then, self._then, self._began = self._then, now, self._clock()
        both = [rank for rank in now if rank in then and now[rank].steps > then[rank].steps]
        sentences = []
        for kind, cost in KINDS.items():
            costs = {rank: cost(then[rank], now[rank]) for rank in both}
            for rank, seconds in costs.items():
                # The lower one of two: with two ranks, the mean of both would hide a rank that takes 1.4 times as long.
                median = statistics.median_low(costs.values())
                is_slow = seconds > RATIO * median and seconds - median >= LEAST_S
                key = (kind, rank)
                self._running[key] = self._running.get(key, 0) + 1 if is_slow else 0
                if self._running[key] >= NUM_WINDOWS and key not in self._named:
                    self._named.add(key)
                    sentences.append(_sentence(kind, now[rank], seconds, median))
        return sentences


def _sentence(kind: str, sign: Sign, seconds: float, median: float) -> str:
    return (
        f"rank {sign.rank} on {sign.host} is slow in {kind} ({MEANING[kind]}): {seconds * 1e3:.1f} ms a step, the "
        f"median rank {median * 1e3:.1f} ms, in {NUM_WINDOWS} windows of at least {WINDOW_STEPS} steps running"
    )
