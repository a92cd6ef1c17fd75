"""Stragglers: the time of each rank's steps before it waits for others, and which ranks are persistently slower."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping

import torch

from trainkit.health.rank_status import RankStatus

WINDOW_STEPS = 50
WINDOW_S = 30.0
NUM_WINDOWS = 3
RATIO = 1.2
MIN_DIFFERENCE_S = 1e-3

KINDS: dict[str, Callable[[RankStatus, RankStatus], float]] = {
    "data": lambda then, now: (now.data_s - then.data_s) / max(now.steps - then.steps, 1),
    "compute": lambda then, now: (now.compute_s - then.compute_s) / max(now.num_computed - then.num_computed, 1),
}
MEANING = {"data": "waiting for its batch", "compute": "from its batch to the first call that waits for other ranks"}


class StepTimes:
    """Totals over this rank's steps: the time of waiting for batches, and from a batch to the first reduction.

    After the first reduction ranks wait for one another, and all take as long as the slowest. On a GPU, events are
    recorded, and read once they are complete: the host never waits.

    Args:
        device: of the rank.
    """

    def __init__(self, device: torch.device) -> None:
        self.totals = (0, 0.0, 0, 0.0)
        """Steps, seconds of data; steps, seconds of compute. Replaced as a whole, so that any thread can read it."""
        self._is_cuda = device.type == "cuda"
        self._began: float | None = None
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._event: torch.cuda.Event | None = None
        self._compute_s = 0.0
        self._num_computed = 0

    def fetched(self, asked: float, arrived: float) -> None:
        """Begins a step.

        Args:
            asked: time at which its batch was asked for, as `time.perf_counter` gives it.
            arrived: time at which its batch arrived.
        """
        steps, data_s, *_ = self.totals
        self.totals = (steps + 1, data_s + arrived - asked, self._num_computed, self._compute_s)
        self._begin(arrived)

    def meet(self) -> None:
        """Ends the step's own computation: its next call waits for other ranks."""
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
    """Compares the totals of all ranks over windows of steps; used by one thread of one rank.

    A rank is named once for data and once for compute: after `NUM_WINDOWS` consecutive windows in which it took `RATIO`
    times as long as the median rank, and `MIN_DIFFERENCE_S` more.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._then: Mapping[int, RankStatus] = {}
        self._running: dict[tuple[str, int], int] = {}
        self._named: set[tuple[str, int]] = set()

    def is_due(self, steps: int) -> bool:
        """Whether a window ends now, after 50 steps or 30 s, whichever is longer.

        Args:
            steps: this rank's total.
        """
        first = min((status.steps for status in self._then.values()), default=0)
        return steps - first >= WINDOW_STEPS and self._clock() - self._began >= WINDOW_S

    def window(self, now: Mapping[int, RankStatus]) -> list[str]:
        """Ends a window.

        Args:
            now: each rank's status, with its totals.

        Returns:
            A sentence for each rank that is newly found to be slow.
        """
        then, self._then, self._began = self._then, now, self._clock()
        both = [rank for rank in now if rank in then and now[rank].steps > then[rank].steps]
        sentences = []
        for kind, cost in KINDS.items():
            costs = {rank: cost(then[rank], now[rank]) for rank in both}
            for rank, seconds in costs.items():
                # The lower of two: with two ranks, the mean of both would hide one that takes 1.4 times as long.
                median = statistics.median_low(costs.values())
                is_slow = seconds > RATIO * median and seconds - median >= MIN_DIFFERENCE_S
                key = (kind, rank)
                self._running[key] = self._running.get(key, 0) + 1 if is_slow else 0
                if self._running[key] >= NUM_WINDOWS and key not in self._named:
                    self._named.add(key)
                    sentences.append(_sentence(kind, now[rank], seconds, median))
        return sentences


def _sentence(kind: str, status: RankStatus, seconds: float, median: float) -> str:
    return (
        f"rank {status.rank} on {status.host} is slow in {kind} ({MEANING[kind]}): {seconds * 1e3:.1f} ms a step, the "
        f"median rank {median * 1e3:.1f} ms, in {NUM_WINDOWS} consecutive windows of at least {WINDOW_STEPS} steps"
    )
