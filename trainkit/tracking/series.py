"""Series: the measurements of a run over its steps, read from metrics.jsonl."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainkit.tracking.buckets import Buckets
from trainkit.tracking.metrics_file import MetricsFile

ORDINALS = ("first", "second")  # of two generators, two domains

Series = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> (steps, values)
Baselines = dict[str, Series]  # metric -> name -> (steps from which a value holds, values)


@dataclass(frozen=True)
class Measured:
    """What a metrics.jsonl holds.

    Args:
        training: means over the steps since the last line; of a long run, means of neighbouring ones.
        evaluation: metrics of evaluations, likewise.
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

    Raises:
        DataError: it is no record of a run.
    """
    file = MetricsFile(metrics)
    file.read()
    return measured(file)


def measured(file: MetricsFile) -> Measured:
    """Returns what a file holds as far as it was read."""
    baselines: defaultdict[str, Series] = defaultdict(dict)
    for (metric, name), points in file.baselines.items():
        baselines[metric][name] = (np.array([p[0] for p in points]), np.array([p[1] for p in points]))
    return Measured(
        training=dict(sorted(_means(file.curves["training"]).items())),
        evaluation=_means(file.curves["evaluation"]),
        baselines=dict(baselines),
        milestones=_in_steps(file.milestones, file.positions),
        plan=tuple((int(position), name) for position, name in file.milestones),
        seconds=file.seconds,
        position=file.position,
        intervals=_ends(file),
    )


def _means(curves: Mapping[str, Buckets]) -> Series:
    return {name: curve.means() for name, curve in curves.items()}


def _in_steps(milestones: list[tuple[int, str]], positions: Buckets) -> tuple[tuple[float, str], ...]:
    """The milestones that a run has reached, by step: between logged steps, batches are of equal size."""
    steps, samples = (np.insert(column, 0, 0.0) for column in positions.points())
    return tuple(
        (float(np.interp(position, samples, steps)), name) for position, name in milestones if position <= samples[-1]
    )


def _ends(file: MetricsFile) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    low, high = (_means(file.curves[f"interval {end}"]) for end in ("low", "high"))
    return {name: (*low[name], high[name][1]) for name in low if name in high}


def family_of(name: str) -> str:
    """Returns the last word of a name that is no number: `swd_32` and `swd_first` belong to `swd`."""
    words = reversed(name.split("_"))
    return next((word for word in words if not word.isdecimal() and word not in ORDINALS), name)


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
