"""Hang watchdog: notices that a run makes no progress, says which rank did not arrive, and ends the job."""

import math
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from trainkit.data.batch import Batch
from trainkit.distributed.cluster import Cluster
from trainkit.errors import ConfigError
from trainkit.health.post import Post
from trainkit.health.stacks import Stand, all_stacks, last_collective, stand_in, stand_of
from trainkit.health.stopped import StoppedAt, wake
from trainkit.health.straggler import StepTimes, Stragglers
from trainkit.health.verdict import Sign, judge

EXIT_CODE = 75
"""Of a job that hung: "try again" in sysexits.h."""
PATIENT_S = 1800.0
"""For what has not been done before, and for what moves."""
LEAST_S = 60.0
DATA_LEAST_S = 600.0
ENOUGH_STEPS = 20
TIMES_LONGEST = 10.0
DATA = "waiting for data"
FLUSH_S = 2.0
LAST_S = 20.0  # of the 30 s that torchrun leaves the others when one has ended

_thread_of: list["Watchdog"] = []  # at most one: a process that makes many runtimes watches the newest that trains


def check_limit(hang_timeout_s: object) -> None:
    """Raises ConfigError unless it is `auto`, None or a number of seconds."""
    is_number = isinstance(hang_timeout_s, int | float) and 0 < hang_timeout_s < math.inf
    if hang_timeout_s is not None and hang_timeout_s != "auto" and not is_number:
        raise ConfigError(
            f"hang_timeout_s={hang_timeout_s}: allowed is auto, a number of seconds above 0, or null for never"
        )


class Watchdog:
    """Watches the thread that iterates batches. It beats at every batch, and where an activity begins or ends.

    hang_timeout_s: seconds without a beat after which the job ends; None: never, and nothing is watched. `auto` learns
        it, for training steps and for each other activity by itself: 10 times the longest time between two beats of it,
        at least 60 s (for the wait for a batch: 600 s); and 1800 s until 20 steps (of another activity: one) have been
        done. A thread that moves, such as one that computes something for itself while other ranks wait, has 1800 s
        too. One process alone waits for nobody: under `auto` it is warned, once for each stall, and not ended.
    directory: of the run; stacks and report go to `hang/` in it, and without one to stderr.
    topic: the same on every rank and new for each watchdog.
    own_store: connects to the store at which the ranks met; None: this rank is watched alone.
    rescue: called when the job ends, to finish what was begun: has 20 s, in a thread of its own.
    tell: takes a sentence, in the watched thread: a slow rank, or a failure of the watchdog's own.

    No new checkpoint is taken when the job ends: it could be of no step. Ranks that wait are inside a step, in which
    buffers have changed and one engine of several may have updated; on a GPU, updates of the step before may be queued
    behind the collective that hangs; and sharded state needs the rank that does not arrive. A save that was begun is
    finished, and the run goes on from the newest checkpoint: `save_every` bounds what is lost.

    Beats are plain writes. All else is done by one daemon thread, from the first batch on until `end`: it samples where
    the watched thread stands, tells other ranks through the store, and reads their alarms. No collective.
    """

    def __init__(
        self,
        cluster: Cluster,
        device: torch.device,
        *,
        hang_timeout_s: float | Literal["auto"] | None = "auto",
        directory: Path | None = None,
        topic: str = "",
        tell: Callable[[str], None] = print,
        own_store: Callable[[], dist.Store | None] = lambda: None,
        rescue: Callable[[], None] = lambda: None,
    ) -> None:
        self._rescue = rescue
        self.hang_timeout_s, self.directory = hang_timeout_s, directory
        self.step = 0
        """The training step that the run is at."""
        self.beats = 0
        self.times = StepTimes(device)
        self._cluster, self._topic, self._tell, self._own_store = cluster, topic, tell, own_store
        self._beat_at = math.inf
        self._activity = "step"
        self._longest: dict[str, float] = {}
        self._num_done = {"step": 0}
        self._within: list[str] = []
        self._num_loops = 0
        self._watched = 0
        self._news: deque[str] = deque()
        self._is_ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._post: Post | None = None
        self._waited_s, self._seen_beats, self._ticked_at = 0.0, 0, 0.0
        self._warned_at = -1
        self._stand, self._moves = Stand("nowhere", "", False, False, 0), False
        self._stopped_at: StoppedAt | None = None
        self._heard: dict[int, tuple[float, float]] = {}
        self._stragglers = Stragglers()

    # -- called by the thread that is watched ------------------------------------------------------------------------

    def watched(self, batches: Iterable[Batch], step: int | None = None) -> Iterator[Batch]:
        """`batches`; watched from the first one on until the iteration ends or is given up.

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
                    if self._news:
                        self._tell(self._news.popleft())
                    yield batch
        finally:
            self._num_loops -= 1
            self._beat_at = float("inf")  # what a user does between two loops is nobody's interval

    def _fetched(self, batches: Iterator[Batch], *, is_training: bool) -> Iterator[Batch]:
        """`batches`, with the wait for each as an activity of its own: no other rank can be what it waits for."""
        while True:
            # As `during` has it, which costs a small step three times as much.
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
        """A mark of progress; the time, as `time.perf_counter` has it."""
        now = time.perf_counter()
        if now - self._beat_at > self._longest.get(self._activity, 0.0):
            self._longest[self._activity] = now - self._beat_at
        self._beat_at = now
        self.beats += 1
        return now

    @contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """What is done inside is no training step, and takes its own time."""
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
        """Stops watching, and waits for the thread. The others are told."""
        self._is_ended.set()
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._stopped_at is not None:
            self._stopped_at.close()
        if self in _thread_of:
            _thread_of.remove(self)
        if self._post is not None:
            self._post.tell(replace(self._sign(), has_left=True))
            self._post = None
        while self._news:
            self._tell(self._news.popleft())

    def _start(self) -> None:
        if self._thread is not None or self._is_ended.is_set():
            return
        while _thread_of:
            _thread_of[0].end()
        _thread_of.append(self)
        self._watched = threading.get_ident()
        try:
            if (store := self._own_store()) is not None:
                self._post = Post(store, self._topic, self._cluster.rank, self._cluster.world_size)
                self._stopped_at = StoppedAt()
        except (RuntimeError, ValueError) as error:
            self._news.append(f"the hang watchdog cannot reach the other ranks, and watches this one alone: {error}")
        self._ticked_at = time.monotonic()
        self._stand = stand_of(self._watched)
        if self._post is not None:
            self._post.tell(self._sign())  # before anything can go wrong: the others must know where to find this one
        self._thread = threading.Thread(target=self._run, name="trainkit-watchdog", daemon=True)
        self._thread.start()

    # -- the watchdog's thread ---------------------------------------------------------------------------------------

    @property
    def limit_s(self) -> float:
        """Seconds without a beat after which this rank is taken to hang."""
        if self.hang_timeout_s is None:
            return float("inf")
        if self.hang_timeout_s != "auto":
            return float(self.hang_timeout_s)
        activity = self._activity
        enough = ENOUGH_STEPS if activity in ("step", DATA) else 0
        is_new = self._num_done.get(activity, 0) <= enough  # the step that was begun last is not done
        learnt = self._learnt_s(activity)
        return max(learnt, PATIENT_S) if is_new else learnt

    def _learnt_s(self, activity: str) -> float:
        return max(DATA_LEAST_S if activity == DATA else LEAST_S, TIMES_LONGEST * self._longest.get(activity, 0.0))

    @property
    def period_s(self) -> float:
        """Seconds from one look to the next."""
        return min(max(self.limit_s / 10, 0.1), 2.0)

    def _run(self) -> None:
        try:
            while not self._is_ended.wait(self.period_s):
                self._look()
                alarm = self._alarm()
                if alarm:
                    self._end_job(alarm)
                self._look_for_stragglers()
        except Exception as error:  # what watches must not end what it watches
            self._news.append(f"the hang watchdog failed, and watches no more: {type(error).__name__}: {error}")

    def _look(self) -> None:
        now, before = time.monotonic(), self._stand
        # Time in which this thread did not run either was no one's: the process was stopped, or its machine asleep.
        ran = min(now - self._ticked_at, 2 * self.period_s)
        self._ticked_at = now
        self._stand = stand_of(self._watched)
        self._moves = self._stand.trace != before.trace
        if self.beats != self._seen_beats or self._num_loops == 0 or self._stand.is_at_prompt:
            self._seen_beats, self._waited_s = self.beats, 0.0
        else:
            self._waited_s += ran

    def _sign(self) -> Sign:
        stand = self._stand
        steps, data_s, num_computed, compute_s = self.times.totals
        return Sign(
            rank=self._cluster.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            time=time.time(),
            step=self.step,
            beats=self.beats,
            waited_s=self._waited_s,
            line=stand.line,
            function=stand.function,
            waits=stand.waits,
            moves=self._moves,
            is_at_prompt=stand.is_at_prompt,
            is_training=self._num_loops > 0,
            is_fetching=self._activity == DATA,
            steps=steps,
            data_s=data_s,
            compute_s=compute_s,
            num_computed=num_computed,
        )

    def _alarm(self) -> str:
        """Why the job has to end; empty: it has not."""
        alarm = self._post.exchange(self._sign()) if self._post is not None else ""
        if alarm or self._waited_s <= self.limit_s or self._is_excused():
            return alarm or ""
        how = "learnt from this run" if self.hang_timeout_s == "auto" else "hang_timeout_s"
        alarm = f"no progress for {self._waited_s:.0f} s (allowed: {self.limit_s:.0f} s, {how})"
        if self.hang_timeout_s == "auto" and self._cluster.world_size == 1:
            self._warn(alarm)
            return ""
        if self._post is not None:
            self._post.raise_alarm(alarm)
        return alarm

    def _warn(self, alarm: str) -> None:
        """Once for a stall: the thread that is watched may go on by itself."""
        if self._warned_at == self.beats:
            return
        self._warned_at = self.beats
        _say(
            f"trainkit: {alarm} at step {self.step}, {self._activity}, {self._sign().place}. The run goes on as "
            f"soon as this does; to end it instead, give hang_timeout_s=SECONDS.\n"
        )

    def _is_excused(self) -> bool:
        """Whether a debugger waits for its user on some rank, or, under `auto`, one computes something for itself."""
        now = time.monotonic()
        awake = []
        for sign in self._signs().values():
            told, heard_at = self._heard.get(sign.rank, (0.0, 0.0))
            if told != sign.time:
                heard_at = now
                self._heard[sign.rank] = sign.time, now
            # One that is stopped looks for ever as it did a moment before.
            if now - heard_at < 5 * self.period_s and not sign.has_left and sign.rank != self._cluster.rank:
                awake.append(sign)
        if any(sign.is_at_prompt for sign in awake):
            return True
        is_early = self.hang_timeout_s == "auto" and self._waited_s <= PATIENT_S
        is_fetched_for = self._waited_s <= self._learnt_s(DATA) and any(sign.is_fetching for sign in awake)
        return is_early and (self._moves or is_fetched_for or any(sign.moves and not sign.waits for sign in awake))

    def _signs(self) -> dict[int, Sign]:
        return (self._post.signs() if self._post is not None else None) or {}

    def _look_for_stragglers(self) -> None:
        is_mine = self._post is not None and self._cluster.rank == 0  # the one whose tracker is heard
        if is_mine and self._stragglers.is_due(self.times.totals[0]):
            self._news.extend(self._stragglers.window(self._signs()))

    # -- the end of a job that hangs ---------------------------------------------------------------------------------

    def _end_job(self, alarm: str) -> None:
        """Every rank's thread: stacks, an answer, and the exit; one rank's: the report, before anyone exits."""
        try:
            mine = replace(self._sign(), collective=last_collective())
            stacks = self._stopped_at.stacks() if self._stopped_at is not None else ""
            stand = stand_in(stacks, self._watched)
            if stand is not None:
                mine = replace(mine, line=stand.line, function=stand.function, waits=False, was_stopped=True)
            self._write_stacks(mine, stacks or all_stacks())
            answers = self._answers(mine)
            speaks = min(answers) == mine.rank and (self._post is None or self._post.claim_report())
            if speaks:
                self._report(alarm, answers)
                if self._post is not None:
                    self._post.reported()
            self._wait_for_report(is_mine=speaks)
            _within(LAST_S, self._rescue)
        except Exception as error:  # the job must end, whatever is wrong with its report
            _say(f"trainkit: the run hangs: {alarm}; its report failed: {type(error).__name__}: {error}\n")
        _flush()
        os._exit(EXIT_CODE)

    @property
    def _patience_s(self) -> float:
        return 4.0 + 4 * self.period_s

    def _answers(self, mine: Sign) -> dict[int, Sign]:
        answers = {mine.rank: mine}
        if self._post is None:
            return answers
        self._post.answer(mine)
        began = time.monotonic()
        while len(answers) < self._cluster.world_size and not self._post.is_dead:
            waited_s = time.monotonic() - began
            if waited_s > self._patience_s:
                break
            # Not before all others had the time to answer: one that goes on lets those go on that wait for it.
            if waited_s > self._patience_s / 2:
                for sign in self._signs().values():
                    if sign.rank not in answers and sign.host == mine.host:
                        wake(sign.pid)
            time.sleep(0.1)
            answers |= self._post.signs("answer") or {}
        return answers

    def _wait_for_report(self, *, is_mine: bool) -> None:
        if self._post is None:
            return
        until = time.monotonic() + self._patience_s + 5.0
        while not is_mine and time.monotonic() < until and not self._post.is_reported():
            time.sleep(0.1)
        # The launcher ends everyone as soon as one has exited.
        time.sleep(1.0 if is_mine else 0.5)

    def _write_stacks(self, mine: Sign, stacks: str) -> None:
        text = (
            f"rank {mine.rank}, process {mine.pid} on {mine.host}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
            f"step {mine.step}, {mine.place}, {mine.waited_s:.0f} s after the last sign of progress\n"
            f"last collective: {mine.collective or 'none is known'}\n\n{stacks}"
        )
        if not self._write(f"rank_{mine.rank}.txt", text):
            _say(text)

    def _report(self, alarm: str, answers: dict[int, Sign]) -> None:
        signs = self._post.signs() if self._post is not None else None
        if self._post is not None and signs is None:
            found = (
                f"Rank {self._cluster.rank} is {answers[self._cluster.rank].place}. The store at which ranks meet does "
                f"not answer: the process that keeps it (torchrun's first agent, or else rank 0) is stopped or gone."
            )
        else:
            found = judge(answers, signs or {}, self._cluster.world_size, time.time())
        stacks = f"{self.directory / 'hang'}/rank_*.txt" if self.directory is not None else "above"
        during = ", or do it in `with runtime.during(NAME):`" if self.hang_timeout_s == "auto" else ""
        paragraph = (
            f"trainkit: the run hangs: {alarm}. {found} Stacks of all threads: {stacks}. The job ends with exit code "
            f"{EXIT_CODE} and can be started again. If this was work and no hang, give a longer hang_timeout_s=SECONDS "
            f"(null: never){during}.\n"
        )
        self._write("report.txt", paragraph)
        _say(paragraph)

    def _write(self, name: str, text: str) -> bool:
        """False where it cannot be written: no directory was given, or the disk is full."""
        if self.directory is None:
            return False
        try:
            path = self.directory / "hang" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError:
            return False
        return True


def _say(text: str) -> None:
    # Not through sys.stderr: the thread that hangs may hold its lock.
    os.write(2, text.encode())


def _flush() -> None:
    """What was printed and not written yet; given up soon, because the thread that hangs may hold the lock."""

    def flush() -> None:
        sys.stdout.flush()
        sys.stderr.flush()

    _within(FLUSH_S, flush)


def _within(seconds: float, call: Callable[[], None]) -> None:
    """`call()`, given up after so long; whatever it raises, the process is about to end."""

    def run() -> None:
        with suppress(Exception):
            call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
