"""HangReport: what is written when a job that hangs ends."""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from trainkit.distributed.cluster import Cluster
from trainkit.health.diagnosis import diagnose
from trainkit.health.health_store import HealthStore
from trainkit.health.rank_status import RankStatus
from trainkit.health.stack_dump import wake

EXIT_CODE = 75
"""Of a job that hangs; sysexits.h calls it a temporary failure."""
FLUSH_TIMEOUT_S = 2.0


class HangReport:
    """Stacks of every rank, and one paragraph for the job, in `hang/` of the run directory or on stderr.

    Args:
        cluster: the processes of the job.
        store: None: this rank knows of no other.
        directory: of the run; None: all is written to stderr.
        hang_timeout_s: of the watchdog.
        timeout_s: seconds to wait for the answers of other ranks.
    """

    def __init__(
        self,
        cluster: Cluster,
        store: HealthStore | None,
        *,
        directory: Path | None,
        hang_timeout_s: float | Literal["auto"] | None,
        timeout_s: float,
    ) -> None:
        self._cluster, self._store, self._directory = cluster, store, directory
        self._hang_timeout_s, self._timeout_s = hang_timeout_s, timeout_s

    def write(self, alarm: str, own: RankStatus, stacks: str) -> None:
        """Writes this rank's stacks, and on one rank the report; returns on all ranks once it is written.

        Args:
            alarm: why the job ends.
            own: this rank's status.
            stacks: of this rank's threads.
        """
        self._write_stacks(own, stacks)
        answers = self._answers(own)
        is_reporter = min(answers) == own.rank and (self._store is None or self._store.claim_report())
        if is_reporter:
            self._write_paragraph(alarm, answers)
            if self._store is not None:
                self._store.mark_reported()
        self._wait_for_report(is_reporter=is_reporter)

    def _answers(self, own: RankStatus) -> dict[int, RankStatus]:
        answers = {own.rank: own}
        if self._store is None:
            return answers
        self._store.answer(own)
        began = time.monotonic()
        while len(answers) < self._cluster.world_size and not self._store.is_dead:
            waited_s = time.monotonic() - began
            if waited_s > self._timeout_s:
                break
            # Only once all others had the time to answer: a process that continues releases those that wait for it.
            if waited_s > self._timeout_s / 2:
                for status in (self._store.statuses() or {}).values():
                    if status.rank not in answers and status.host == own.host:
                        wake(status.pid)
            time.sleep(0.1)
            answers |= self._store.statuses("answer") or {}
        return answers

    def _wait_for_report(self, *, is_reporter: bool) -> None:
        if self._store is None:
            return
        until = time.monotonic() + self._timeout_s + 5.0
        while not is_reporter and time.monotonic() < until and not self._store.is_reported():
            time.sleep(0.1)
        # The launcher ends all processes as soon as one has exited.
        time.sleep(1.0 if is_reporter else 0.5)

    def _write_stacks(self, own: RankStatus, stacks: str) -> None:
        text = (
            f"rank {own.rank}, process {own.pid} on {own.host}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
            f"step {own.step}, {own.place}, {own.waited_s:.0f} s after the last progress\n"
            f"last collective: {own.collective or 'none is known'}\n\n{stacks}"
        )
        if not self._write_file(f"rank_{own.rank}.txt", text):
            write_stderr(text)

    def _write_paragraph(self, alarm: str, answers: dict[int, RankStatus]) -> None:
        last_seen = self._store.statuses() if self._store is not None else None
        if self._store is not None and last_seen is None:
            finding = (
                f"Rank {self._cluster.rank} is {answers[self._cluster.rank].place}. The rendezvous store does not "
                f"answer: the process that keeps it (torchrun's first agent, or else rank 0) is stopped or gone."
            )
        else:
            finding = diagnose(answers, last_seen or {}, self._cluster.world_size, time.time())
        stacks = f"{self._directory / 'hang'}/rank_*.txt" if self._directory is not None else "above"
        during = ", or do the work in `with runtime.during(NAME):`" if self._hang_timeout_s == "auto" else ""
        paragraph = (
            f"trainkit: the run hangs: {alarm}. {finding} Stacks of all threads: {stacks}. The job ends with exit code "
            f"{EXIT_CODE} and can be started again. If this was no hang, set a longer hang_timeout_s=SECONDS "
            f"(null: never){during}.\n"
        )
        self._write_file("report.txt", paragraph)
        write_stderr(paragraph)

    def _write_file(self, name: str, text: str) -> bool:
        """False where it cannot be written: there is no directory, or the disk is full."""
        if self._directory is None:
            return False
        try:
            path = self._directory / "hang" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError:
            return False
        return True


def write_stderr(text: str) -> None:
    """Writes to the file descriptor of stderr: the thread that hangs may hold the lock of `sys.stderr`."""
    os.write(2, text.encode())


def flush() -> None:
    """Flushes stdout and stderr, with a timeout: the thread that hangs may hold their locks."""

    def flush_both() -> None:
        sys.stdout.flush()
        sys.stderr.flush()

    call_within(FLUSH_TIMEOUT_S, flush_both)


def call_within(timeout_s: float, call: Callable[[], None]) -> None:
    """Calls a function that may block, in a process that is about to end.

    Args:
        timeout_s: seconds after which it is abandoned.
        call: runs in a daemon thread; its exceptions are ignored.
    """

    def run() -> None:
        with suppress(Exception):
            call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
