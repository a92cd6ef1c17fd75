"""The last evaluation of runs beside their baselines, and the last values of all their curves."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trainkit.tracking.report.markup import Markup, tag
from trainkit.tracking.report.record import Record


def evaluation_section(records: Sequence[Record]) -> Iterator[Markup]:
    """The metrics of the last evaluation: as cards of one run, as a table of several."""
    if not any(record.measured.evaluation for record in records):
        return
    yield tag("h2", "Last evaluation")
    if len(records) == 1:
        yield tag("div", [_card(records[0], name) for name in records[0].measured.evaluation], class_="row")
        return
    names = dict.fromkeys(name for record in records for name in record.measured.evaluation)
    head = tag("tr", tag("th", "metric"), [tag("th", record.name, data_run=i) for i, record in enumerate(records)])
    rows = [tag("tr", tag("th", name), [_cell(record, name, i) for i, record in enumerate(records)]) for name in names]
    yield tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="card across")


def _card(record: Record, name: str) -> Markup:
    values, last = record.measured.evaluation[name][1], _last(record, name)
    notes = [*_beside(record, name)]
    if len(values) > 1:
        low, high = _range(record, "evaluation", name)
        notes.append(f"lowest {low:.4g}, highest {high:.4g}")
    return tag(
        "div",
        tag("span", name),
        tag("b", f"{last:.5g}"),
        [tag("small", note) for note in notes],
        class_="card fact",
    )


def _cell(record: Record, name: str, number: int) -> Markup:
    if name not in record.measured.evaluation:
        return tag("td", "", data_run=number)
    notes = [tag("small", note) for note in _beside(record, name)]
    return tag("td", tag("b", f"{_last(record, name):.5g}"), notes, data_run=number)


def _last(record: Record, name: str) -> float:
    curve = record.file.curves["evaluation"][name]
    return curve.last[1] if len(curve) else float("nan")


def _beside(record: Record, name: str) -> Iterator[str]:
    """The interval of a metric, and its baselines."""
    interval = _interval(record, name)
    if interval is not None:
        yield f"95 %: {interval[0]:.4g} to {interval[1]:.4g}"
    for baseline, (_, held) in record.measured.baselines.get(name, {}).items():
        yield f"{baseline}: {held[-1]:.4g}"


def _interval(record: Record, name: str) -> tuple[float, float] | None:
    """Of the last evaluation, from result.json or, while the run is going, from metrics.jsonl."""
    result: Any = record.json.get("result")
    intervals = result.get("intervals") if isinstance(result, dict) else None
    bounds = intervals.get(name) if isinstance(intervals, dict) else None
    if isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(one, int | float) for one in bounds):
        return float(bounds[0]), float(bounds[1])
    curves = [record.file.curves[f"interval {end}"].get(name) for end in ("low", "high")]
    ends = [curve.last for curve in curves if curve is not None and len(curve)]
    measured_at = record.file.curves["evaluation"][name]
    if len(ends) < 2 or not len(measured_at) or any(step != measured_at.last[0] for step, _ in ends):
        return None
    return ends[0][1], ends[1][1]


def _range(record: Record, kind: str, name: str) -> tuple[float, float]:
    values = record.file.curves[kind][name].points()[1]
    return float(np.min(values)), float(np.max(values))


def last_values(records: Sequence[Record]) -> Iterator[Markup]:
    """The last, lowest and highest value of every curve, as a table: what the charts show, in words."""
    rows = [
        tag(
            "tr",
            tag("th", record.name) if len(records) > 1 else None,
            tag("th", name),
            tag("td", kind),
            [tag("td", f"{value:.5g}") for value in (curve.last[1], *_range(record, kind, name))],
            data_run=number,
        )
        for number, record in enumerate(records)
        for kind in ("training", "evaluation")
        for name, curve in sorted(record.file.curves[kind].items())
        if len(curve)
    ]
    if rows:
        names = [*(["run"] if len(records) > 1 else []), "metric", "of", "last", "lowest", "highest"]
        head = tag("thead", tag("tr", [tag("th", name) for name in names]))
        table = tag("div", tag("table", head, tag("tbody", rows)), class_="scroll")
        yield tag("details", tag("summary", "All values as a table"), table)
