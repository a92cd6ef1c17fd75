"""Pictures, texts and tables of runs, through their steps."""

import base64
import io
import json
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from trainkit.tracking.report.markup import Markup, tag
from trainkit.tracking.report.record import Record

MAX_SIDE = 800  # pixels of a picture; larger ones are scaled down
QUALITY = 88  # of WebP
MAX_TEXT = 4000  # characters of a text
MAX_ROWS = 200  # of a table
MAX_COLUMNS = 60

Encoded = MutableMapping[tuple[Path, int], str]


def through_time(records: Sequence[Record], encoded: Encoded) -> Iterator[Markup]:
    """Pictures and texts of each name, all at the step that a slider shows: the newest that existed then.

    Args:
        records: of the runs; pictures of one name are side by side.
        encoded: pictures that were encoded before, which are taken from here and added.
    """
    kinds = ("pictures", "texts")  # a name may have both
    steps = sorted(
        {step for r in records for kind in kinds for files in getattr(r, kind).values() for step, _ in files}
    )
    if not steps:
        return
    yield tag("h2", "Through the run")
    if len(steps) > 1:
        yield _slider(records[0], steps)
    shown = []
    for kind, show in zip(kinds, (_pictures, _texts), strict=True):
        for name in dict.fromkeys(name for record in records for name in getattr(record, kind)):
            for number, record in enumerate(records):
                if files := getattr(record, kind).get(name):
                    about = f"{name} of {record.name}" if len(records) > 1 else name
                    shown.append(_figure(about, files, show(about, files, encoded), number))
    yield tag("div", shown, class_="wide")


def _slider(record: Record, steps: Sequence[int]) -> Markup:
    names = [_part_at(record, step) for step in steps]
    return tag(
        "div",
        tag("button", "play", type="button"),
        tag(
            "input", type="range", min=0, max=len(steps) - 1, value=len(steps) - 1, aria_label="step",
            data_steps=json.dumps(steps), data_names=json.dumps(names),
        ),
        tag("output"),
        class_="steps",
    )  # fmt: skip


def _part_at(record: Record, step: int) -> str:
    reached = [name for start, name in record.measured.milestones if start <= step]
    return f" · {reached[-1]}" if reached else ""


def _figure(name: str, files: Sequence[tuple[int, Path]], shown: Iterator[Markup], number: int) -> Markup:
    return tag("figure", _caption(name, files[-1][0]), shown, class_="card picture", data_through=True, data_run=number)


def _caption(name: str, step: int) -> Markup:
    return tag("figcaption", name.replace("_", " "), tag("small", f" step {step:,}"))


def _pictures(name: str, files: Sequence[tuple[int, Path]], encoded: Encoded) -> Iterator[Markup]:
    for step, path in files:
        at: dict[str, Any] = {"data_step": step, "hidden": step != files[-1][0]}
        picture = _picture(path, encoded)
        if picture is None:  # another may still be shown
            yield tag("p", f"{path.name} cannot be read as an image", **at)
        else:
            yield tag("img", alt=f"{name}, step {step}", src=picture, **at)


def _texts(name: str, files: Sequence[tuple[int, Path]], encoded: Encoded) -> Iterator[Markup]:
    for step, path in files:
        with path.open("rb") as file:
            text = file.read(4 * MAX_TEXT).decode("utf-8", errors="replace")[:MAX_TEXT]
        yield tag("pre", text, class_="scroll", tabindex=0, data_step=step, hidden=step != files[-1][0])


def _picture(path: Path, encoded: Encoded) -> str | None:
    """The picture as a data: address, encoded once for all reports of a process; None where it cannot be read."""
    from PIL import Image

    key = path, path.stat().st_mtime_ns
    if key not in encoded:
        try:
            with Image.open(path, formats=["PNG"]) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        file = io.BytesIO()
        image.save(file, "WEBP", quality=QUALITY)
        encoded[key] = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return encoded[key]


def tables_section(records: Sequence[Record]) -> Iterator[Markup]:
    """The newest table of each name."""
    shown = [
        _table(f"{name} of {record.name}" if len(records) > 1 else name, step, rows, number)
        for number, record in enumerate(records)
        for name, (step, rows) in record.tables.items()
    ]
    if shown:
        yield tag("h2", "Tables")
        yield tag("div", shown, class_="wide")


def _table(name: str, step: int, rows: Sequence[Sequence[str]], number: int) -> Markup:
    written = [
        tag("tr", [tag("td" if index else "th", _number(value)) for value in row[:MAX_COLUMNS]])
        for index, row in enumerate(rows[: MAX_ROWS + 1])
    ]
    table = tag("div", tag("table", written), class_="scroll", tabindex=0)
    return tag("figure", _caption(name, step), table, class_="card", data_run=number)


def _number(text: str) -> str:
    """A number with few digits; other text as it is."""
    try:
        value = float(text)
    except ValueError:
        return text[:MAX_TEXT]
    return text if value - value != 0 or value == round(value) else f"{value:.4g}"
