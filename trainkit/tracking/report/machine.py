"""The machine of runs: the memory of each engine, and the ranks with the plan of their all-reduce."""

import re
from collections.abc import Iterator, Sequence

from trainkit.tracking.report.links import links_picture
from trainkit.tracking.report.markup import Markup, tag
from trainkit.tracking.report.record import Record

PARTS = ("parameters", "gradients", "optimizer")
UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_AMOUNT = r"([\d.]{1,12}) (B|kB|MB|GB|TB)"
_LINE = re.compile(
    rf"(.{{1,200}}): on each rank, (predicted|counted after a step): parameters {_AMOUNT}, gradients {_AMOUNT}, "
    rf"optimizer (?:{_AMOUNT}|\?)"
)
WIDTH, ROW, BAR = 560, 44, 16


def machine_section(records: Sequence[Record]) -> Iterator[Markup]:
    """Memory and links of each run."""
    shown = [figure for number, record in enumerate(records) for figure in _figures(record, number, len(records))]
    if shown:
        yield tag("h2", "Memory and links")
        yield tag("div", shown, class_="wide")


def _figures(record: Record, number: int, num_records: int) -> Iterator[Markup]:
    of = f" of {record.name}" if num_records > 1 else ""
    for title, picture in (
        ("memory on each rank", memory_picture(record.summary)),
        ("ranks and the sum of their gradients", links_picture(record.json.get("links"))),
    ):
        if picture is not None:
            yield tag("figure", tag("figcaption", f"{title}{of}"), picture, class_="card", data_run=number)


def memory_of(summary: Sequence[str]) -> dict[str, tuple[str, list[float]]]:
    """The bytes of each engine, as a run's summary tells them: counted where that is known, else predicted.

    Example:
        >>> memory_of(["G: on each rank, predicted: parameters 4.0 kB, gradients 2.0 kB, optimizer ?"])
        {'G': ('predicted', [4000.0, 2000.0, 0.0])}
    """
    found = {}
    for line in summary:
        if match := _LINE.fullmatch(line):
            name, how, *amounts = match.groups()
            values = [
                float(f"{float(amount) * UNITS[unit]:.6g}") if amount and amount.count(".") < 2 else 0.0
                for amount, unit in zip(amounts[::2], amounts[1::2], strict=True)
            ]
            found[name] = (how, values)
    return found


def memory_picture(summary: Sequence[str]) -> Markup | None:
    """A bar for each engine: parameters, gradients and optimizer state. None where the summary tells nothing."""
    memory = memory_of(summary)
    most = max((sum(values) for _, values in memory.values()), default=0.0)
    if not most:
        return None
    rows, said = [], []
    for index, (name, (how, values)) in enumerate(memory.items()):
        words = ", ".join(f"{part} {_words(value)}" for part, value in zip(PARTS, values, strict=True))
        said.append(f"{name}: {words}, {how}")
        rows.append(tag("text", f"{name}: {_words(sum(values))} {how}", x=0, y=index * ROW + 14, class_="label"))
        x = 0.0
        for part, (title, value) in enumerate(zip(PARTS, values, strict=True)):
            width = round(WIDTH * value / most, 2)
            bar = tag("title", f"{name}: {title} {_words(value)}")
            rows.append(tag("rect", bar, x=round(x, 2), y=index * ROW + 20, width=width, height=BAR, class_=f"c{part}"))
            x += width
    legend = [tag("span", tag("i", class_=f"c{part}"), title) for part, title in enumerate(PARTS)]
    size = f"0 0 {WIDTH} {len(memory) * ROW}"
    svg = tag("svg", rows, viewBox=size, width=WIDTH, role="img", aria_label="; ".join(said))
    return tag("div", svg, tag("p", legend, class_="legend"))


def _words(num_bytes: float) -> str:
    unit = next((unit for unit, size in reversed(UNITS.items()) if num_bytes >= size), "B")
    return f"{num_bytes / UNITS[unit]:.3g} {unit}"
