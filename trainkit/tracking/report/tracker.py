"""Report: the tracker that keeps report.html of a run up to date."""

import time
from collections.abc import Mapping
from pathlib import Path

from trainkit.tracking import jsonl
from trainkit.tracking.metrics_file import MetricsFile
from trainkit.tracking.report.page import write_report
from trainkit.tracking.tracker import Run, Status, Tracker, WriteDeferredError

WRITING_FRACTION = 0.02  # at most this fraction of the time is spent writing


class Report(Tracker):
    """Writes report.html in the run directory at evaluations and at the end of the run.

    It reads what `Jsonl` and `Media` have written, so it must come after them in `Trackers`.
    """

    def __init__(self) -> None:
        self._run: Run | None = None
        self._next_s = 0.0
        self._encoded: dict[tuple[Path, int], str] = {}
        self._file: MetricsFile | None = None

    def start(self, run: Run) -> None:
        """Takes the directory and the length of the run."""
        self._run, self._file = run, MetricsFile(run.directory / jsonl.FILE_NAME)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the report, unless writing has taken more than 2 % of the time."""
        if time.monotonic() >= self._next_s:
            self._write("running")

    def finish(self, status: Status) -> None:
        """Writes the report of the whole run."""
        self._write(status)

    def _write(self, status: str) -> None:
        assert self._run is not None, "start() comes first"
        began, run = time.monotonic(), self._run
        try:
            write_report(
                run.directory, status=status, num_samples=run.num_samples, encoded=self._encoded, file=self._file
            )
            self.is_behind = False
        except OSError as error:  # the next report contains everything that this one would have shown
            self.is_behind = True
            raise WriteDeferredError(*error.args) from error
        now = time.monotonic()
        self._next_s = now + (now - began) / WRITING_FRACTION
