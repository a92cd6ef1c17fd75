"""Series: the measurements of a run over its steps, read from metrics.jsonl."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.errors import DataError
from trainkit.tracking import jsonl

MAX_POINTS = 2000  # of a line: more than a picture has columns of pixels
OWN_KEYS = {"step", "time", "kind", "nonfinite", "position", "samples_per_s", "eta_s", "eta_low_s", "eta_high_s"}

Series = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> (steps, values)
Baselines = dict[str, Series]  # metric -> name -> (steps from which a value holds, values)


@dataclass(frozen=True)
class Measured:
    """What a metrics.jsonl holds.

    Args:
        training: means over the steps since the last line.
        evaluation: metrics of evaluations.
        baselines: of these metrics.
        intervals: of these metrics: steps, lower and upper ends.
        milestones: the step at which each part of the run begins, and its name; of those that have begun.
        plan: the position at which each part begins, and its name; of all.
        seconds: between the first and the last line.
        position: samples so far.
    """

    training: Series
    evaluation: Series
    baselines: Baselines
    milestones: tuple[tuple[float, str], ...]
    plan: tuple[tuple[int, str], ...]
    seconds: float
    position: int
    intervals: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=dict)


def read_series(metrics: Path) -> Measured:
    """Reads a metrics.jsonl.

    Args:
        metrics: the file.

    Returns:
        Its measurements.
    """
    Points = defaultdict[str, list[tuple[int, float]]]
    points: dict[str, Points] = {"training": defaultdict(list), "evaluation": defaultdict(list)}
    baselines: defaultdict[str, Points] = defaultdict(lambda: defaultdict(list))
    intervals: defaultdict[str, list[tuple[int, float, float]]] = defaultdict(list)
    positions, times, milestones = [(0, 0)], [], []
    for line in _lines(metrics):
        times.append(line["time"])
        if line["kind"] == "milestones":
            milestones = line["milestones"]
            continue
        if line.get("position") is not None:
            positions.append((line["step"], line["position"]))
        for name in line.keys() - OWN_KEYS:
            if line["kind"] == "interval":
                intervals[name].append((line["step"], *line[name]))
            elif line["kind"] == "baseline":
                for baseline, value in line[name].items():
                    baselines[name][baseline].append((line["step"], value))
            elif line["kind"] in points and line[name] is not None:  # others are of a later trainkit
                points[line["kind"]][name].append((line["step"], line[name]))
    return Measured(
        training=_arrays(dict(sorted(points["training"].items()))),
        evaluation=_arrays(dict(sorted(points["evaluation"].items()))),
        baselines={metric: _arrays(lines) for metric, lines in baselines.items()},
        milestones=_in_steps(milestones, positions),
        plan=tuple((int(position), name) for position, name in milestones),
        seconds=times[-1] - times[0] if times else 0.0,
        position=positions[-1][1],
        intervals={name: _columns(rows) for name, rows in intervals.items()},
    )


def _lines(metrics: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a metrics.jsonl, or says that it is none."""
    try:
        for line in jsonl.read(metrics):
            if not {"step", "time", "kind"} <= line.keys():
                raise DataError(f"{metrics} is no record of a run: a line has no step, time and kind; remove that line")
            yield line
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{metrics} is no record of a run: a line is no JSON ({error}); remove that line") from error


def _in_steps(milestones: list[tuple[int, str]], positions: list[tuple[int, int]]) -> tuple[tuple[float, str], ...]:
    """The milestones that a run has reached, by step: between logged steps, batches are of equal size."""
    steps, samples = np.array(positions, float).T
    return tuple(
        (float(np.interp(position, samples, steps)), name) for position, name in milestones if position <= samples[-1]
    )


def _arrays(points: Mapping[str, list[tuple[int, float]]]) -> Series:
    return {name: (np.array([p[0] for p in points[name]]), np.array([p[1] for p in points[name]])) for name in points}


def _columns(rows: list[tuple[int, float, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps, low, high = np.array(rows, float).T
    return steps, low, high


def family_of(name: str) -> str:
    """Returns the last word of a name that is no number: `swd_32` belongs to `swd`."""
    return next((word for word in reversed(name.split("_")) if not word.isdecimal()), name)


def panels_of(training: Series, evaluation: Series) -> list[str]:
    """Returns the families to draw: the losses, then those of evaluation metrics.

    A family is the last word of a name: `d_loss` and `held_out_loss` belong to `loss`.
    """
    losses = ["loss"] if any(family_of(name) == "loss" for name in [*training, *evaluation]) else []
    others = {family_of(name): None for name in evaluation if family_of(name) != "loss" and not name.startswith("num_")}
    return [*losses, *others]


def with_gaps(steps: np.ndarray, values: np.ndarray, training: Series) -> tuple[np.ndarray, np.ndarray]:
    """Puts a gap where the `resolution` of a growing network changed: evaluations there measure something else."""
    known, resolutions = training.get("resolution", (np.zeros(0), np.zeros(0)))
    if not len(known):
        return steps, values
    at = resolutions[np.clip(np.searchsorted(known, steps, side="right") - 1, 0, None)]
    changes = np.flatnonzero(np.diff(at)) + 1
    return np.insert(steps.astype(float), changes, np.nan), np.insert(values.astype(float), changes, np.nan)


def thinned(steps: np.ndarray, values: np.ndarray, most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `most` points, each the mean of its neighbours."""
    size = -(-len(steps) // most)
    starts = np.arange(0, len(steps), size)
    counts = np.diff([*starts, len(steps)])
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def running_mean(values: np.ndarray) -> np.ndarray:
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
