"""Jsonl: the metrics of a run as metrics.jsonl, one JSON object per line."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainkit.tracking.tracker import Run, Status, Tracker, WriteDeferredError

FILE_NAME = "metrics.jsonl"
RESUMED = "the run continues after step {step}"


class Jsonl(Tracker):
    """Writes `{"step", "time", "kind": "training" | "evaluation", ...values}` lines to metrics.jsonl, each flushed.

    A line of kind "baseline" contains `{name: value}` for each metric, one of kind "interval" `[low, high]`, one of
    kind "milestones" the position and the name of each part of the run, one of kind "message" a `text` about the run,
    at the step of the line before it. Readers ignore kinds that they do not know. `time` is in seconds since 1970. A
    value that is not finite becomes null, which every JSON parser reads, and is listed under `nonfinite`:
    `{"loss": null, "nonfinite": {"loss": "nan"}}`. On a resume, the file is first truncated to the resumed step, in one
    rename, so it never contains a step twice. Lines that cannot be written (a full disk) are kept, and written with the
    next one.
    """

    def __init__(self) -> None:
        self._file = -1
        self._unwritten = b""
        self._step = 0
        self._early: list[str] = []  # messages of before the start

    def start(self, run: Run) -> None:
        """Opens metrics.jsonl in the run directory, truncated to the resumed step."""
        path = run.directory / FILE_NAME
        if path.exists():
            truncate_to_step(path, -1 if run.resumed_step is None else run.resumed_step)
        self._unwritten, self._step = b"", run.resumed_step or 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        if run.milestones:
            self._write_line(self._step, "milestones", {"milestones": run.milestones})
        if run.resumed_step is not None:
            self._early.insert(0, RESUMED.format(step=run.resumed_step))
        early, self._early = self._early, []
        for text in early:
            self.message(text)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line of kind "training"."""
        self._write(step, "training", values)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line of kind "evaluation"."""
        self._write(step, "evaluation", values)

    def baselines(self, step: int, baselines: Mapping[str, Mapping[str, float]]) -> None:
        """Writes a line of kind "baseline"; values that are not finite are left out."""
        finite = {
            metric: {name: value for name, value in values.items() if math.isfinite(value)}
            for metric, values in baselines.items()
        }
        self._write_line(step, "baseline", finite)

    def intervals(self, step: int, intervals: Mapping[str, tuple[float, float]]) -> None:
        """Writes a line of kind "interval"; ends that are not finite are left out."""
        self._write_line(
            step, "interval", {name: ends for name, ends in intervals.items() if all(map(math.isfinite, ends))}
        )

    def message(self, text: str) -> None:
        """Writes a line of kind "message"; what is said before the start is written by it."""
        if self._file < 0:
            self._early.append(text)
        else:
            self._write_line(self._step, "message", {"text": text})

    def finish(self, status: Status) -> None:
        """Writes what is outstanding and closes the file."""
        if self._file >= 0:
            try:
                self._write_out()
            finally:
                os.close(self._file)
                self._file = -1

    def _write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        line: dict[str, Any] = {name: value if math.isfinite(value) else None for name, value in values.items()}
        nonfinite = {name: str(float(value)) for name, value in values.items() if not math.isfinite(value)}
        self._write_line(step, kind, line | ({"nonfinite": nonfinite} if nonfinite else {}))

    def _write_line(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        assert self._file >= 0, "start() comes first"
        self._step = step
        line = {"step": step, "time": round(time.time(), 3), "kind": kind, **values}
        self._unwritten += (json.dumps(line, allow_nan=False) + "\n").encode()
        self._write_out()

    def _write_out(self) -> None:
        size = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(self._unwritten):
                written += os.write(self._file, self._unwritten[written:])
        except OSError as error:
            os.ftruncate(self._file, size)  # no torn line stays in the file
            self.is_behind = True
            raise WriteDeferredError(*error.args) from error
        self._unwritten, self.is_behind = b"", False


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Reads the lines of a metrics.jsonl.

    Args:
        path: the file.

    Yields:
        Each line as a dict. An incomplete last line (its writer was killed) is left out.

    Raises:
        json.JSONDecodeError: where any other line is damaged.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


def truncate_to_step(path: Path, step: int) -> None:
    """Removes, in one rename, the lines of later steps and an incomplete last line.

    Args:
        path: a metrics.jsonl.
        step: the last step whose lines stay.
    """
    temporary = path.with_suffix(".jsonl.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in read(path) if line["step"] <= step)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
