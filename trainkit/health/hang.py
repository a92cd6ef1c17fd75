"""Hang watchdog: detects that a run makes no progress, reports which rank did not arrive, and ends the job."""

import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

import torch
import torch.distributed as dist

from trainkit.distributed.cluster import Cluster
from trainkit.errors import ConfigError
from trainkit.health.hang_report import EXIT_CODE, HangReport, call_within, flush, write_stderr
from trainkit.health.health_store import HealthStore
from trainkit.health.location import Location, all_stacks, last_collective, location_in, location_of
from trainkit.health.rank_status import RankStatus
from trainkit.health.stack_dump import StackDump
from trainkit.health.straggler import StepTimes, Stragglers

Item = TypeVar("Item")
MAX_LIMIT_S = 1800.0
"""Under `auto`, for an activity that is new to the run, and for a thread that moves."""
MIN_LIMIT_S = 60.0
MIN_DATA_LIMIT_S = 600.0
WARMUP_STEPS = 20
LIMIT_FACTOR = 10.0
DATA = "waiting for data"
RESCUE_TIMEOUT_S = 20.0  # of the 30 s that torchrun leaves the others when one has exited

_active: list["Watchdog"] = []  # at most one: a process that makes many runtimes watches the newest that trains


def check_limit(hang_timeout_s: object) -> None:
    """Checks an argument of a Watchdog.

    Raises:
        ConfigError: unless it is `auto`, None or a number of seconds above 0.
    """
    is_number = isinstance(hang_timeout_s, int | float) and 0 < hang_timeout_s < math.inf
    if hang_timeout_s is not None and hang_timeout_s != "auto" and not is_number:
        raise ConfigError(
            f"hang_timeout_s={hang_timeout_s}: must be auto, a number of seconds above 0, or null for never"
        )


class Watchdog:
    """Watches the thread that iterates batches. It beats at every batch, and where an activity begins or ends.

    No checkpoint is saved when the job ends, since it might belong to no step: ranks that wait are inside a step, in
    which buffers have changed and one engine of several may have updated; on a GPU, updates of the step before may be
    queued behind the collective that hangs; and sharded state needs the rank that does not arrive. A save that was
    begun is finished, and the run resumes from the newest checkpoint: `save_every` bounds what is lost.

    Beats are plain writes. All else is done by one daemon thread, from the first batch until `end`: it samples the
    location of the watched thread, publishes it to other ranks through the store, and reads their alarms. There is no
    collective.

    Args:
        cluster: the processes of the job.
        device: of this rank.
        hang_timeout_s: seconds without a beat after which the job ends; None: never, and nothing is watched. `auto`
            measures it, for training steps and for each other activity: 10 times the longest time between two beats, at
            least 60 s (for the wait for a batch: 600 s); and 1800 s until 20 steps (of another activity: one) are done.
            A thread that moves, such as one that computes while other ranks wait, has 1800 s too. Under `auto` a single
            process is warned, once for each stall, and not ended.
        directory: of the run; stacks and the report are written to its `hang/`, or to stderr where it is None.
        topic: the same on every rank and new for each watchdog.
        report: called with a sentence, in the watched thread: a slow rank, or a failure of the watchdog itself.
        own_store: connects to the rendezvous store; where it returns None, this rank is watched alone.
        rescue: called when the job ends, to finish what was begun, with a timeout of 20 s, in a thread of its own.
    """

    def __init__(
        self,
        cluster: Cluster,
        device: torch.device,
        *,
        hang_timeout_s: float | Literal["auto"] | None = "auto",
        directory: Path | None = None,
        topic: str = "",
        report: Callable[[str], None] = print,
        own_store: Callable[[], dist.Store | None] = lambda: None,
        rescue: Callable[[], None] = lambda: None,
    ) -> None:
        self._rescue = rescue
        self.hang_timeout_s, self.directory = hang_timeout_s, directory
        self.step = 0
        """The current training step."""
        self.beats = 0
        self.times = StepTimes(device)
        self._cluster, self._topic, self._report, self._own_store = cluster, topic, report, own_store
        # An iterator that is open at exit is closed when modules, such as math and time, are gone.
        self._clock, self._never = time.perf_counter, math.inf
        self._beat_at = self._never
        self._activity = "step"
        self._longest: dict[str, float] = {}
        self._num_done = {"step": 0}
        self._within: list[str] = []
        self._num_loops = 0
        self._watched = 0
        self._messages: deque[str] = deque()
        self._is_ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._store: HealthStore | None = None
        self._waited_s, self._seen_beats, self._ticked_at = 0.0, 0, 0.0
        self._warned_at = -1
        self._location, self._moves = Location("nowhere", "", False, False, 0), False
        self._stack_dump: StackDump | None = None
        self._seen: dict[int, tuple[float, float]] = {}
        self._stragglers = Stragglers()

    # -- called by the watched thread --------------------------------------------------------------------------------

    def watched(self, batches: Iterable[Item], step: int | None = None) -> Iterator[Item]:
        """Yields `batches`, and watches this thread from the first one until the iteration ends or is closed.

        Args:
            batches: of one loop.
            step: training steps done before; None: these are batches of an evaluation.
        """
        if self.hang_timeout_s is None:
            yield from batches
            return
        self._start()
        self._num_loops += 1
        try:
            with nullcontext() if step is not None else self.during("evaluation"):
                for batch in self._fetched(iter(batches), is_training=step is not None):
                    if step is not None:
                        step = self.step = step + 1
                        self._num_done["step"] += 1
                    if self._messages:
                        self._report(self._messages.popleft())
                    yield batch
        finally:
            self._num_loops -= 1
            self._beat_at = self._never  # between two loops nothing is measured

    def _fetched(self, batches: Iterator[Item], *, is_training: bool) -> Iterator[Item]:
        """Yields `batches`; the wait for each is an activity of its own, for which no other rank is the cause."""
        while True:
            # The same as `during`, which costs a small step three times as much.
            asked = self._enter(DATA)
            try:
                batch = next(batches, None)
            finally:
                arrived = self._leave(DATA)
            if batch is None:
                return
            if is_training and self._cluster.world_size > 1:  # one rank alone waits for nobody
                self.times.fetched(asked, arrived)
            yield batch

    def beat(self) -> float:
        """Marks progress; returns the time of `time.perf_counter`."""
        now = self._clock()
        if now - self._beat_at > self._longest.get(self._activity, 0.0):
            self._longest[self._activity] = now - self._beat_at
        self._beat_at = now
        self.beats += 1
        return now

    @contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """Measures an activity that is no training step, such as saving, and gives it a time limit of its own.

        Args:
            activity: its name, in alarms.
        """
        self._enter(activity)
        try:
            yield
        finally:
            self._leave(activity)

    def _enter(self, activity: str) -> float:
        now = self.beat()
        self._within.append(activity)
        self._activity = activity
        return now

    def _leave(self, activity: str) -> float:
        now = self.beat()
        self._within.remove(activity)
        self._activity = self._within[-1] if self._within else "step"
        if activity not in self._within:
            self._num_done[activity] = self._num_done.get(activity, 0) + 1
        return now

    def end(self) -> None:
        """Stops watching, joins the watchdog's thread, and lets other ranks know."""
        self._is_ended.set()
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._stack_dump is not None:
            self._stack_dump.close()
        if self in _active:
            _active.remove(self)
        if self._store is not None:
            self._store.publish(replace(self._status(), has_left=True))
            self._store = None
        while self._messages:
            self._report(self._messages.popleft())

    def _start(self) -> None:
        if self._thread is not None or self._is_ended.is_set():
            return
        while _active:
            _active[0].end()
        _active.append(self)
        self._watched = threading.get_ident()
        try:
            if (store := self._own_store()) is not None:
                self._store = HealthStore(store, self._topic, self._cluster.rank, self._cluster.world_size)
                self._stack_dump = StackDump()
        except (RuntimeError, ValueError) as error:
            self._messages.append(
                f"the hang watchdog cannot reach the other ranks, and watches this rank alone: {error}"
            )
        self._ticked_at = time.monotonic()
        self._location = location_of(self._watched)
        if self._store is not None:
            self._store.publish(self._status())  # before anything can fail: others need its host and process
        self._thread = threading.Thread(target=self._run, name="trainkit-watchdog", daemon=True)
        self._thread.start()

    # -- the watchdog's thread ---------------------------------------------------------------------------------------

    @property
    def limit_s(self) -> float:
        """Seconds without a beat after which this rank is considered to hang."""
        if self.hang_timeout_s is None:
            return float("inf")
        if self.hang_timeout_s != "auto":
            return float(self.hang_timeout_s)
        activity = self._activity
        enough = WARMUP_STEPS if activity in ("step", DATA) else 0
        is_new = self._num_done.get(activity, 0) <= enough  # the step that was begun last is not done
        measured = self._measured_limit_s(activity)
        return max(measured, MAX_LIMIT_S) if is_new else measured

    def _measured_limit_s(self, activity: str) -> float:
        return max(
            MIN_DATA_LIMIT_S if activity == DATA else MIN_LIMIT_S, LIMIT_FACTOR * self._longest.get(activity, 0.0)
        )

    @property
    def period_s(self) -> float:
        """Seconds between two samples of the watched thread."""
        return min(max(self.limit_s / 10, 0.1), 2.0)

    def _run(self) -> None:
        try:
            while not self._is_ended.wait(self.period_s):
                self._sample()
                alarm = self._alarm()
                if alarm:
                    self._end_job(alarm)
                self._look_for_stragglers()
        except Exception as error:  # a failure of the watchdog must not end the run
            self._messages.append(f"the hang watchdog failed and has stopped: {type(error).__name__}: {error}")

    def _sample(self) -> None:
        now, before = time.monotonic(), self._location
        # Time in which this thread did not run either does not count: the process was stopped, or its machine asleep.
        ran = min(now - self._ticked_at, 2 * self.period_s)
        self._ticked_at = now
        self._location = location_of(self._watched)
        self._moves = self._location.trace != before.trace
        if self.beats != self._seen_beats or self._num_loops == 0 or self._location.is_at_prompt:
            self._seen_beats, self._waited_s = self.beats, 0.0
        else:
            self._waited_s += ran

    def _status(self) -> RankStatus:
        location = self._location
        steps, data_s, num_computed, compute_s = self.times.totals
        return RankStatus(
            rank=self._cluster.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            time=time.time(),
            step=self.step,
            beats=self.beats,
            waited_s=self._waited_s,
            line=location.line,
            function=location.function,
            waits=location.waits,
            moves=self._moves,
            is_at_prompt=location.is_at_prompt,
            is_training=self._num_loops > 0,
            is_fetching=self._activity == DATA,
            steps=steps,
            data_s=data_s,
            compute_s=compute_s,
            num_computed=num_computed,
        )

    def _alarm(self) -> str:
        """Why the job has to end; empty where it does not."""
        alarm = self._store.exchange(self._status()) if self._store is not None else ""
        if alarm or self._waited_s <= self.limit_s or self._is_excused():
            return alarm or ""
        source = "measured in this run" if self.hang_timeout_s == "auto" else "hang_timeout_s"
        alarm = f"no progress for {self._waited_s:.0f} s (limit: {self.limit_s:.0f} s, {source})"
        if self.hang_timeout_s == "auto" and self._cluster.world_size == 1:
            self._warn(alarm)
            return ""
        if self._store is not None:
            self._store.raise_alarm(alarm)
        return alarm

    def _warn(self, alarm: str) -> None:
        """Once for each stall: the watched thread may continue by itself."""
        if self._warned_at == self.beats:
            return
        self._warned_at = self.beats
        write_stderr(
            f"trainkit: {alarm} at step {self.step}, {self._activity}, {self._status().place}. The run keeps waiting; "
            f"to end it instead, set hang_timeout_s=SECONDS.\n"
        )

    def _is_excused(self) -> bool:
        """Whether a debugger waits for its user on some rank, or, under `auto`, a rank computes while others wait."""
        now = time.monotonic()
        awake = []
        for status in self._statuses().values():
            published, seen_at = self._seen.get(status.rank, (0.0, 0.0))
            if published != status.time:
                seen_at = now
                self._seen[status.rank] = status.time, now
            # The status of a stopped process no longer changes.
            if now - seen_at < 5 * self.period_s and not status.has_left and status.rank != self._cluster.rank:
                awake.append(status)
        if any(status.is_at_prompt for status in awake):
            return True
        is_early = self.hang_timeout_s == "auto" and self._waited_s <= MAX_LIMIT_S
        is_fetched_for = self._waited_s <= self._measured_limit_s(DATA) and any(status.is_fetching for status in awake)
        return is_early and (
            self._moves or is_fetched_for or any(status.moves and not status.waits for status in awake)
        )

    def _statuses(self) -> dict[int, RankStatus]:
        return (self._store.statuses() if self._store is not None else None) or {}

    def _look_for_stragglers(self) -> None:
        is_reporter = self._store is not None and self._cluster.rank == 0  # the rank that has a tracker
        if is_reporter and self._stragglers.is_due(self.times.totals[0]):
            self._messages.extend(self._stragglers.window(self._statuses()))

    # -- the end of a job that hangs ---------------------------------------------------------------------------------

    def _end_job(self, alarm: str) -> None:
        """In every rank's thread: the report, the rescue, and the exit."""
        try:
            report = HangReport(
                self._cluster,
                self._store,
                directory=self.directory,
                hang_timeout_s=self.hang_timeout_s,
                timeout_s=4.0 + 4 * self.period_s,
            )
            report.write(alarm, *self._last_status())
            call_within(RESCUE_TIMEOUT_S, self._rescue)
        except Exception as error:  # the job must end, whatever is wrong with its report
            write_stderr(f"trainkit: the run hangs: {alarm}; its report failed: {type(error).__name__}: {error}\n")
        flush()
        os._exit(EXIT_CODE)

    def _last_status(self) -> tuple[RankStatus, str]:
        """This rank's status, and its threads' stacks; where another rank woke it, those of when it was stopped."""
        status = replace(self._status(), collective=last_collective())
        stacks = self._stack_dump.stacks() if self._stack_dump is not None else ""
        location = location_in(stacks, self._watched)
        if location is not None:
            status = replace(status, line=location.line, function=location.function, waits=False, was_stopped=True)
        return status, stacks or all_stacks()
