"""MetricsFile: a metrics.jsonl that may still be growing, read in bounded memory and each line once."""

import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.errors import DataError
from trainkit.tracking.buckets import Buckets

CHUNK_BYTES = 1 << 20
OWN_KEYS = {"step", "time", "kind", "nonfinite", "position", "eta_s", "eta_low_s", "eta_high_s"}
MAX_MESSAGES = 2000
MAX_CURVES = 2000  # of a kind; more names than that are no metrics

Curves = dict[str, Buckets]


class MetricsFile:
    """The lines of a metrics.jsonl as far as `read` has come.

    Lines of kinds that are not known here are passed over.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.curves: dict[str, Curves] = {"training": {}, "evaluation": {}, "interval low": {}, "interval high": {}}
        """By kind and name."""
        self.num_nonfinite: defaultdict[str, int] = defaultdict(int)
        """By name: values that were not finite, and are in no curve."""
        self.baselines: defaultdict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
        """By metric and name: steps from which a value holds, and the values."""
        self.messages: list[tuple[int, float, str]] = []
        """Step, time and text; of more than MAX_MESSAGES the newest."""
        self.milestones: list[tuple[int, str]] = []
        self.positions, self.times = Buckets(), Buckets()
        self.last: dict[str, float] = {}
        """The newest line of training, all of its numbers."""
        self.last_step = 0
        self._first_time = self._last_time = math.nan
        self._offset, self._inode = 0, -1

    @property
    def seconds(self) -> float:
        """Between the first and the last line."""
        return 0.0 if math.isnan(self._first_time) else self._last_time - self._first_time

    @property
    def started(self) -> float:
        """The time of the first line, in seconds since 1970; NaN where there is none."""
        return self._first_time

    @property
    def position(self) -> int:
        """Samples so far."""
        return int(self.positions.last[1]) if len(self.positions) else 0

    def read(self, progress: Callable[[int, int], None] = lambda done, total: None) -> bool:
        """Reads what was added since the last call; all of it where the file was replaced, as a resume does.

        An incomplete last line is left for the next call.

        Args:
            progress: called now and then with the bytes read and their total.

        Returns:
            Whether anything was new.

        Raises:
            DataError: a line is no JSON, or no line of a run.
            OSError: it cannot be read.
        """
        with self.path.open("rb") as file:
            status = self.path.stat()
            if (status.st_ino, self._offset <= status.st_size) != (self._inode, True):
                self._forget()
                self._inode = status.st_ino
            before = self._offset
            file.seek(self._offset)
            while chunk := file.read(CHUNK_BYTES):
                chunk += file.readline()
                whole = chunk[: chunk.rfind(b"\n") + 1]
                self._take(whole)
                self._offset += len(whole)
                progress(self._offset, status.st_size)
                if len(whole) < len(chunk):
                    break
        return self._offset > before

    def _take(self, chunk: bytes) -> None:
        groups: defaultdict[tuple[str, ...], list[list[Any]]] = defaultdict(list)
        for text in chunk.splitlines():
            line = self._parsed(text)
            if line["kind"] == "training" and "nonfinite" not in line:  # nearly all lines of a long run
                groups[tuple(line)].append(list(line.values()))
            else:
                self._flush(groups)
                try:
                    self._take_one(line)
                except (KeyError, TypeError, ValueError) as error:
                    kind = str(line["kind"])[:40]
                    raise DataError(
                        f"{self.path} is no record of a run: a line of kind {kind} is damaged; remove that line"
                    ) from error
        self._flush(groups)

    def _parsed(self, text: bytes) -> dict[str, Any]:
        try:
            line = json.loads(text.decode("utf-8", errors="replace"))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.path} is no record of a run: a line is no JSON ({error}); remove that line"
            ) from error
        if not (isinstance(line, dict) and {"step", "time", "kind"} <= line.keys() and _is_step(line["step"])):
            raise DataError(f"{self.path} is no record of a run: a line has no step, time and kind; remove that line")
        return line

    def _flush(self, groups: dict[tuple[str, ...], list[list[Any]]]) -> None:
        """Adds lines of the same names to the curves, a column at a time."""
        for names, rows in groups.items():
            columns = dict(zip(names, zip(*rows, strict=True), strict=True))
            del columns["kind"]
            numbers = {name: _numbers(column) for name, column in columns.items()}
            steps = numbers["step"]
            self._saw(steps, numbers["time"])
            for name, values in numbers.items():
                if name not in OWN_KEYS:
                    self._extend("training", name, steps, values)
            if "position" in numbers:
                self._extend_with(self.positions, steps, numbers["position"])
            self.last = {name: float(values[-1]) for name, values in numbers.items()}
        groups.clear()

    def _take_one(self, line: dict[str, Any]) -> None:
        step, kind = line["step"], line["kind"]
        self._saw(np.array([step], float), _numbers([line["time"]]))
        if kind == "milestones":
            self.milestones = [(int(position), str(name)) for position, name in line["milestones"]]
        elif kind == "message":
            self.messages = [*self.messages[1 - MAX_MESSAGES :], (step, float(line["time"]), str(line.get("text", "")))]
        elif kind in ("training", "evaluation"):
            self._take_values(line)
        elif kind in ("baseline", "interval"):
            take = self._take_baseline if kind == "baseline" else self._take_interval
            for name in line:
                if name not in OWN_KEYS:
                    take(step, name, line[name])

    def _take_values(self, line: dict[str, Any]) -> None:
        at = np.array([line["step"]], float)
        for name in line:
            if name not in OWN_KEYS:
                self._extend(line["kind"], name, at, _numbers([line[name]]))
        if line["kind"] == "training":
            if _is_number(line.get("position")):
                self._extend_with(self.positions, at, _numbers([line["position"]]))
            self.last = {name: _number(value) for name, value in line.items() if _is_number(value)}

    def _take_baseline(self, step: int, metric: str, values: Any) -> None:
        for name, value in values.items() if isinstance(values, dict) else ():
            if _is_number(value):
                self.baselines[metric, name].append((step, _number(value)))

    def _take_interval(self, step: int, metric: str, bounds: Any) -> None:
        if isinstance(bounds, list) and len(bounds) == 2:
            for end, bound in zip(("low", "high"), bounds, strict=True):
                self._extend(f"interval {end}", metric, np.array([step], float), _numbers([bound]))

    def _saw(self, steps: np.ndarray, times: np.ndarray) -> None:
        if math.isnan(self._first_time):
            self._first_time = float(times[0])
        self._last_time = float(times[-1])
        self.last_step = max(self.last_step, int(steps[-1]))
        self._extend_with(self.times, steps, times - self._first_time)

    def _extend(self, kind: str, name: str, steps: np.ndarray, values: np.ndarray) -> None:
        curves = self.curves[kind]
        if name not in curves and len(curves) >= MAX_CURVES:
            return
        curve = curves.setdefault(name, Buckets())
        self.num_nonfinite[name] += self._extend_with(curve, steps, values)

    @staticmethod
    def _extend_with(curve: Buckets, steps: np.ndarray, values: np.ndarray) -> int:
        finite = np.isfinite(values)
        curve.extend(steps[finite], values[finite])
        return int(len(finite) - finite.sum())


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 53


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(column: Any) -> np.ndarray:
    """A column as floats; NaN for what is no number."""
    try:
        return np.array(column, float)  # None becomes NaN
    except (TypeError, ValueError, OverflowError):
        return np.array([_number(value) for value in column])


def _number(value: Any) -> float:
    try:
        return float(value) if _is_number(value) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        return math.nan
