"""Document: the numbers of runs as the JSON values that a report's script draws."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trainkit.tracking.buckets import Buckets
from trainkit.tracking.report.events import events
from trainkit.tracking.report.record import Record
from trainkit.tracking.series import family_of, panels_of, with_gaps

SPEED, SPLIT, PEAK = "samples per second", "fraction of the time", "peak memory, GB"
OWN_FAMILIES = {"samples_per_s": SPEED, "data_wait": SPLIT, "comm_wait": SPLIT, "peak_memory_gb": PEAK}
DIGITS = 6
MAX_MARKS = 200

JsonCurve = dict[str, list[float | None]]


def document(records: Sequence[Record]) -> dict[str, Any]:
    """Returns the curves, baselines, intervals and marks of runs, and the charts to draw of them.

    Args:
        records: of the runs.
    """
    training = {name: curve for record in records for name, curve in record.measured.training.items()}
    evaluation = {name: curve for record in records for name, curve in record.measured.evaluation.items()}
    families = panels_of(training, evaluation)
    others = [
        family for family in dict.fromkeys(map(_family, training)) if family not in [*families, SPEED, SPLIT, PEAK]
    ]
    charts: list[dict[str, Any]] = [{"family": family, "section": "curves"} for family in families]
    charts += [{"family": family, "section": "other"} for family in others]
    if "samples_per_s" in training:
        charts.append({"family": SPEED, "section": "speed"})
    if "peak_memory_gb" in training:
        charts.append({"family": PEAK, "section": "speed"})
    timed = [number for number, record in enumerate(records) if "data_wait" in record.measured.training]
    charts += [{"family": SPLIT, "section": "speed", "run": number} for number in timed]
    return {"runs": [_run(record) for record in records], "charts": charts}


def _family(name: str) -> str:
    return OWN_FAMILIES.get(name) or family_of(name)


def _run(record: Record) -> dict[str, Any]:
    file = record.file
    return {
        "name": record.name,
        "last": file.last_step,
        "samples": _curve(file.positions),
        "seconds": _curve(file.times),
        "training": [
            {"name": name, "family": _family(name), **_curve(curve, has_means=True), **_left_out(record, name)}
            for name, curve in sorted(file.curves["training"].items())
            if len(curve)
        ],
        "evaluation": [_evaluation(record, name) for name in file.curves["evaluation"]],
        "baselines": [
            {"name": name, "family": family_of(metric), "s": _rounded(steps), "v": _rounded(values)}
            for metric, lines in record.measured.baselines.items()
            for name, (steps, values) in lines.items()
        ],
        "marks": list(_marks(record)),
    }


def _left_out(record: Record, name: str) -> dict[str, int]:
    number = record.file.num_nonfinite.get(name, 0)
    return {"left_out": number} if number else {}


def _curve(curve: Buckets, *, has_means: bool = False) -> JsonCurve:
    steps, values = curve.points()
    found = {"s": _rounded(steps, exact=True), "v": _rounded(values)}
    if has_means and curve.is_thinned:
        means = curve.means()
        found |= {"ms": _rounded(means[0], exact=True), "mv": _rounded(means[1])}
    return found


def _evaluation(record: Record, name: str) -> dict[str, Any]:
    curves = record.file.curves
    steps, values = with_gaps(*curves["evaluation"][name].points(), record.measured.training)
    found = {"name": name, "family": family_of(name), "s": _rounded(steps, exact=True), "v": _rounded(values)}
    if name in curves["interval low"] and name in curves["interval high"]:
        for end in ("low", "high"):
            steps, bounds = curves[f"interval {end}"][name].points()
            found |= {f"{end}_s": _rounded(steps, exact=True), end: _rounded(bounds)}
    return {**found, **_left_out(record, name)}


def _marks(record: Record) -> Iterator[dict[str, Any]]:
    """What is marked on the curves."""
    for step, name in record.measured.milestones:
        if step > 0:
            yield {"step": float(f"{step:.{DIGITS}g}"), "kind": "part", "text": name}
    marked = [event for event in events(record) if event.kind != "note" and event.step > 0]
    for event in marked[-MAX_MARKS:]:
        yield {"step": event.step, "kind": event.kind, "text": event.text[:200]}


def _rounded(values: np.ndarray, *, exact: bool = False) -> list[float | None]:
    """Numbers of few digits; null for a gap."""
    found: list[float | None] = []
    for value in np.asarray(values, float).tolist():
        if value != value or value in (float("inf"), float("-inf")):
            found.append(None)
        elif value == int(value) and abs(value) < 1e15:
            found.append(int(value))
        else:
            found.append(round(value, 1) if exact else float(f"{value:.{DIGITS}g}"))
    return found
