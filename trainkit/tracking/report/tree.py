"""JSON files of a run as trees that can be opened, and its configuration and summary."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from trainkit.tracking.report.markup import Markup, tag
from trainkit.tracking.report.record import Record

TITLES = {
    "audit": "audit: leakage between training and held-out data",
    "manifest": "manifest: code, environment, hardware, data and configuration",
    "result": "result: how the run has ended",
}
MAX_DEPTH, MAX_ITEMS, MAX_TEXT = 12, 300, 4000


def files_section(records: Sequence[Record]) -> Iterator[Markup]:
    """Audit, manifest, result, summary and configuration of each run."""
    shown = [part for number, record in enumerate(records) for part in _files(record, number, len(records))]
    if shown:
        yield tag("h2", "The run" if len(records) == 1 else "The runs")
        yield from shown


def _files(record: Record, number: int, num_records: int) -> Iterator[Markup]:
    before = f"{record.name} · " if num_records > 1 else ""
    for name, title in TITLES.items():
        if name in record.json:
            yield tag("details", tag("summary", f"{before}{title}"), tree(record.json[name]), data_run=number)
    for title, text in (
        ("machine, networks, data and messages", "\n".join(record.summary)),
        ("configuration", record.config),
    ):
        if text:
            yield tag("details", tag("summary", f"{before}{title}"), tag("pre", text), data_run=number)


def tree(value: Any, depth: int = 0) -> Markup:
    """JSON as lists of names and values; what is long is closed, and what is very long cut."""
    if not isinstance(value, dict | list) or not value:
        return tag("span", _leaf(value), class_="leaf")
    if depth >= MAX_DEPTH:
        return tag("span", "... deeper levels are not shown", class_="leaf")
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    rows = [tag("li", _item(str(name), one, depth)) for name, one in items[:MAX_ITEMS]]
    if len(items) > MAX_ITEMS:
        rows.append(tag("li", f"... and {len(items) - MAX_ITEMS:,} more"))
    return tag("ul", rows, class_="tree")


def _item(name: str, value: Any, depth: int) -> list[Markup]:
    if not isinstance(value, dict | list) or not value:
        return [tag("b", name), tree(value, depth + 1)]
    number = tag("small", f" {len(value):,}")
    return [tag("details", tag("summary", name, number), tree(value, depth + 1))]


def _leaf(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."
