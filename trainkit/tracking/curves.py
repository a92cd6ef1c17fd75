"""Curve: the losses and evaluations of a run over its steps as curve.png, drawn from metrics.jsonl."""

import time
from collections import defaultdict
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.tracking import jsonl
from trainkit.tracking.tracker import Run, Status, Tracker, WriteDeferredError

FILE_NAME = "curve.png"
DRAWING_FRACTION = 0.02  # at most this fraction of the time is spent drawing
MAX_PANELS = 6
GREYS = ("0.2", "0.45", "0.6")  # of baselines
DASHES = ("--", (0, (6, 2)), (0, (2, 2)))
MAX_POINTS = 2000  # of a line: more than the picture has columns of pixels
OWN_KEYS = {"step", "time", "kind", "nonfinite", "position", "samples_per_s", "eta_s", "eta_low_s", "eta_high_s"}

Series = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> (steps, values)
Baselines = dict[str, Series]  # metric -> name -> (steps from which a value holds, values)


class Curve(Tracker):
    """Draws curve.png in the run directory at evaluations and at the end of the run.

    It reads the metrics.jsonl of the same run, so it must come after the `Jsonl` tracker in `Trackers`.
    """

    def __init__(self) -> None:
        self._run: Run | None = None
        self._next_s = 0.0
        self._drawn: tuple[int, int] | None = None

    def start(self, run: Run) -> None:
        """Takes the directory and the name of the run."""
        self._run, self._drawn = run, None

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Draws the curves, unless drawing has taken more than 2 % of the time."""
        if time.monotonic() >= self._next_s:
            self._draw()

    def finish(self, status: Status) -> None:
        """Draws the curves of the whole run, unless the last drawing shows them."""
        self._draw()

    def _draw(self) -> None:
        assert self._run is not None, "start() comes first"
        began, metrics = time.monotonic(), self._run.directory / jsonl.FILE_NAME
        try:
            state = _state(metrics)
            if state is None or state != self._drawn:
                draw(metrics, self._run.directory / FILE_NAME, title=self._run.name)
            self._drawn, self.is_behind = state, False
        except OSError as error:  # the next drawing contains everything that this one would have shown
            self.is_behind = True
            raise WriteDeferredError(*error.args) from error
        now = time.monotonic()
        self._next_s = now + (now - began) / DRAWING_FRACTION


def _state(metrics: Path) -> tuple[int, int] | None:
    """Size and time of the last change; None for a file that does not exist."""
    if not metrics.is_file():
        return None
    status = metrics.stat()
    return status.st_size, status.st_mtime_ns


def draw(metrics: Path, picture: Path, *, title: str = "") -> None:
    """Draws a metrics.jsonl: one panel for the losses, then one for each other family of evaluation metrics.

    A family is the last word of a name: `d_loss` and `held_out_loss` belong to `loss`. Training is a thin line under
    its running mean, evaluations are markers, baselines are dashed lines. Without any measurement, no file is written.

    Args:
        metrics: the metrics.jsonl to read.
        picture: the PNG file to write, replaced in one rename.
        title: text above the panels.
    """
    training, evaluation, baselines = _series(metrics)
    panels = _panels(training, evaluation)
    if not panels:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_columns = min(len(panels), 3)
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(1.5 + 4.5 * num_columns, 0.5 + 3.5 * num_rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: it would take over a notebook's windows and keep every figure alive
    last_step = max(steps[-1] for steps, _ in [*training.values(), *evaluation.values()])
    for index, family in enumerate(panels):
        axes = figure.add_subplot(num_rows, num_columns, index + 1)
        family_baselines = chain(*(lines.items() for metric, lines in baselines.items() if _family(metric) == family))
        _panel(axes, family, training, evaluation, dict(family_baselines), last_step)
        axes.set_xlim(0, 1.02 * last_step)
    figure.suptitle(title)
    temporary = picture.with_suffix(".tmp.png")
    figure.savefig(temporary)
    temporary.replace(picture)


def _series(metrics: Path) -> tuple[Series, Series, Baselines]:
    Points = defaultdict[str, list[tuple[int, float]]]
    points: dict[str, Points] = {"training": defaultdict(list), "evaluation": defaultdict(list)}
    baselines: defaultdict[str, Points] = defaultdict(lambda: defaultdict(list))
    for line in jsonl.read(metrics):
        for name in line.keys() - OWN_KEYS:
            if line["kind"] == "baseline":
                for baseline, value in line[name].items():
                    baselines[name][baseline].append((line["step"], value))
            elif line[name] is not None:
                points[line["kind"]][name].append((line["step"], line[name]))
    return (
        _arrays(dict(sorted(points["training"].items()))),
        _arrays(dict(sorted(points["evaluation"].items()))),
        {metric: _arrays(lines) for metric, lines in baselines.items()},
    )


def _arrays(points: Mapping[str, list[tuple[int, float]]]) -> Series:
    return {name: (np.array([p[0] for p in points[name]]), np.array([p[1] for p in points[name]])) for name in points}


def _family(name: str) -> str:
    """Returns the last word of a name that is no number: `swd_32` belongs to `swd`."""
    return next((word for word in reversed(name.split("_")) if not word.isdecimal()), name)


def _panels(training: Series, evaluation: Series) -> list[str]:
    losses = ["loss"] if any(_family(name) == "loss" for name in [*training, *evaluation]) else []
    others = {_family(name): None for name in evaluation if _family(name) != "loss" and not name.startswith("num_")}
    return [*losses, *others][:MAX_PANELS]


def _panel(axes: Any, family: str, training: Series, evaluation: Series, baselines: Series, last_step: int) -> None:
    shown = []
    for index, name in enumerate(name for name in training if _family(name) == family):
        steps, values = _thinned(*training[name])
        smooth = _running_mean(values)
        axes.plot(steps, values, color=f"C{index}", linewidth=0.6, alpha=0.35)
        axes.plot(steps, smooth, color=f"C{index}", linewidth=1.6, label=name)
        shown += [np.quantile(values, (0.01, 0.99)), smooth[len(smooth) // 50 :]]
    for index, name in enumerate(name for name in evaluation if _family(name) == family):
        steps, values = _with_gaps(*evaluation[name], training)
        axes.plot(steps, values, ":o", color=f"C{index + 5}", markersize=4, linewidth=1, label=name)
        shown.append(values)
    for index, (name, (steps, values)) in enumerate(baselines.items()):
        _dashed(axes, name, steps, values, last_step, index)
        shown.append(values)
    low, high = min(map(np.nanmin, shown)), max(map(np.nanmax, shown))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("step")
    axes.set_title(family)
    axes.grid(alpha=0.25)
    # Below the panel, where it hides nothing.
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)


def _dashed(axes: Any, name: str, steps: np.ndarray, values: np.ndarray, last_step: int, index: int) -> None:
    """Draws a baseline from the left edge on: its first value is valid before it was measured."""
    axes.plot(
        [0, *steps[1:], last_step],
        [*values, values[-1]],
        color=GREYS[index % len(GREYS)],
        linestyle=DASHES[index % len(DASHES)],
        linewidth=1.2,
        drawstyle="steps-post",
        label=name,
    )


def _with_gaps(steps: np.ndarray, values: np.ndarray, training: Series) -> tuple[np.ndarray, np.ndarray]:
    """Puts a gap where the `resolution` of a growing network changed: evaluations there measure something else."""
    known, resolutions = training.get("resolution", (np.zeros(0), np.zeros(0)))
    if not len(known):
        return steps, values
    at = resolutions[np.clip(np.searchsorted(known, steps, side="right") - 1, 0, None)]
    changes = np.flatnonzero(np.diff(at)) + 1
    return np.insert(steps.astype(float), changes, np.nan), np.insert(values.astype(float), changes, np.nan)


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most MAX_POINTS points, each the mean of its neighbours."""
    size = -(-len(steps) // MAX_POINTS)
    starts = np.arange(0, len(steps), size)
    counts = np.diff([*starts, len(steps)])
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of about a thirtieth of the curve.

    The window is narrower at the beginning, which is steep. At the end its later half is missing, because a single
    value is no mean.
    """
    half = len(values) // 60
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first = index - np.minimum(half, index)
    last = np.minimum(2 * index - first, len(values) - 1)
    means: np.ndarray = (sums[last + 1] - sums[first]) / (last + 1 - first)
    return means
