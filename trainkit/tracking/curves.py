"""Curve: the losses and evaluations of a run over its steps as curve.png, drawn from metrics.jsonl."""

import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.tracking import jsonl
from trainkit.tracking.series import Measured, Series, family_of, panels_of, read_series, running_mean, with_gaps
from trainkit.tracking.tracker import Run, Status, Tracker, WriteDeferredError

FILE_NAME = "curve.png"
DRAWING_FRACTION = 0.02  # at most this fraction of the time is spent drawing
MAX_PANELS = 6
GREYS = ("0.2", "0.45", "0.6")  # of baselines
DASHES = ("--", (0, (6, 2)), (0, (2, 2)))
MAX_NAMED = 12  # milestones that get a name: with more the names would overlap


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
    its running mean, evaluations are markers with their intervals, baselines are dashed lines. Without any measurement,
    no file is written.

    Args:
        metrics: the metrics.jsonl to read.
        picture: the PNG file to write, replaced in one rename.
        title: text above the panels.
    """
    measured = read_series(metrics)
    training, evaluation, baselines = measured.training, measured.evaluation, measured.baselines
    panels = panels_of(training, evaluation)[:MAX_PANELS]
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
        family_baselines = chain(*(lines.items() for metric, lines in baselines.items() if family_of(metric) == family))
        _panel(axes, family, measured, dict(family_baselines), last_step)
        axes.set_xlim(0, 1.02 * last_step)
        _mark(axes, measured.milestones, last_step, is_named=index == 0)
    figure.suptitle(title)
    temporary = picture.with_suffix(".tmp.png")
    figure.savefig(temporary)
    temporary.replace(picture)


def _panel(axes: Any, family: str, measured: Measured, baselines: Series, last_step: int) -> None:
    shown, training, evaluation = [], measured.training, measured.evaluation
    for index, name in enumerate(name for name in training if family_of(name) == family):
        steps, values = training[name]
        smooth = running_mean(values)
        axes.plot(steps, values, color=f"C{index}", linewidth=0.6, alpha=0.35)
        axes.plot(steps, smooth, color=f"C{index}", linewidth=1.6, label=name)
        shown += [np.quantile(values, (0.01, 0.99)), smooth[len(smooth) // 50 :]]
    for index, name in enumerate(name for name in evaluation if family_of(name) == family):
        steps, values = with_gaps(*evaluation[name], training)
        axes.plot(steps, values, ":o", color=f"C{index + 5}", markersize=4, linewidth=1, label=name)
        shown.append(values)
        if name in measured.intervals:
            steps, low, high = measured.intervals[name]
            axes.vlines(steps, low, high, color=f"C{index + 5}", linewidth=1, alpha=0.6)
            shown += [low, high]
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


def _mark(axes: Any, milestones: Sequence[tuple[float, str]], last_step: int, *, is_named: bool) -> None:
    """Draws a vertical line where each part of the run begins; names them in the first panel."""
    shown = [(step, name) for step, name in milestones if 0 < step <= last_step]
    for step, name in shown:
        axes.axvline(step, color="0.75", linewidth=0.8, zorder=0)
        if is_named and len(shown) <= MAX_NAMED:
            axes.text(
                step,
                0.99,
                f" {name}",
                fontsize=6,
                color="0.4",
                rotation=90,
                va="top",
                transform=axes.get_xaxis_transform(),
            )
