"""Listing: the first page of a dashboard, a table of runs."""

import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from trainkit.dashboard.runs import Runs
from trainkit.errors import DataError
from trainkit.tracking.console import duration
from trainkit.tracking.report.markup import Markup, page, tag
from trainkit.tracking.report.record import Record

HEAD = ("", "run", "status", "step", "samples", "last evaluation", "left", "last line")
NO_CHARTS: dict[str, Any] = {"runs": [], "charts": []}


def listing_page(runs: Runs) -> str:
    """The page, which follows the runs."""
    table = _table(runs)
    body = [
        tag("p", tag("span", "following", id="live", role="status"), class_="live"),
        tag("h1", f"runs in {runs.root}"),
        tag("section", table, id="list", data_digest=_digest(table)),
    ]
    return page(f"runs in {runs.root}", body, {**NO_CHARTS, "live": "list"}, connect="'self'")


def listing_document(runs: Runs) -> dict[str, Any]:
    """What the page asks for now and then: whether its table has changed."""
    return {**NO_CHARTS, "sections": {"list": _digest(_table(runs))}}


def _table(runs: Runs) -> Markup:
    names = runs.names()
    if not names:
        return tag("p", "no run yet: directories with a metrics.jsonl appear here")
    rows = [_row(runs, name) for name in names]
    table = tag("table", tag("thead", tag("tr", [tag("th", word) for word in HEAD])), tag("tbody", rows), class_="list")
    button = tag("p", tag("button", "compare the chosen runs", type="submit"))
    return tag("form", tag("div", table, class_="card across"), button, action="run", method="get")


def _row(runs: Runs, name: str) -> Markup:
    link = tag("a", name, href=f"run?{query_of([name])}")
    choose = tag("input", type="checkbox", name="run", value=name, aria_label=f"compare {name}")
    try:
        record = runs.record(name)
    except (DataError, OSError) as error:
        return tag("tr", tag("td"), tag("td", link), tag("td", f"cannot be read: {error}", colspan=len(HEAD) - 2))
    left = record.file.last.get("eta_s") if record.status == "running" else None
    cells = [
        tag("b", record.status, class_=f"status {record.status}"),
        f"{record.file.last_step:,}",
        f"{record.file.position:,}",
        _newest(record),
        "" if left is None or not 0 <= left < 1e9 else duration(left),
        _ago(runs.age_s(name)),
    ]
    return tag("tr", tag("td", choose), tag("td", link), [tag("td", cell) for cell in cells])


def _newest(record: Record) -> str:
    """The first metric of the last evaluation, else the training loss."""
    for kind in ("evaluation", "training"):
        for name, curve in record.file.curves[kind].items():
            if len(curve) and (kind == "evaluation" or name.endswith("loss")):
                return f"{name} {curve.last[1]:.4g}"
    return ""


def _ago(seconds: float) -> str:
    """In words that change seldom."""
    for size, word in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {word} ago"
    return "just now"


def _digest(markup: Markup) -> str:
    return hashlib.blake2b(markup.encode("utf-8", errors="replace"), digest_size=8).hexdigest()


def query_of(asked: Sequence[str]) -> str:
    """The query that asks for runs."""
    return urlencode([("run", name) for name in asked], errors="replace")
