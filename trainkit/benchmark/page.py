"""Page: the figures of one machine or several as one HTML file that needs no other."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from trainkit.benchmark import words
from trainkit.benchmark.figures import is_measured
from trainkit.benchmark.machines import Machine, as_json
from trainkit.benchmark.published import Source, published
from trainkit.benchmark.rows import columns_of, row_of
from trainkit.tracking.report.markup import LIBRARIES, STYLES, Markup, page, tag
from trainkit.whole_file import write_text

ASSETS = Path(__file__).parent / "assets"
OWN_STYLES = (*STYLES, ASSETS / "benchmark.css")
OWN_SCRIPTS = (*LIBRARIES, ASSETS / "benchmark.js")
HOW = (
    "Each cell is a job in processes of its own, configured as a training run is. Its time contains data, forward and "
    "backward passes, reduction, update and logging; warm-up steps are left out. Every process takes the batch that is "
    "in the table, so that more processes do more work; efficiency is the speed over that of as many single processes.",
    "MFU is the model's own FLOPs (matrix products, convolutions and attention of forward and backward passes, counted "
    "in one step with plain PyTorch) over the peak, which is the fastest matrix product of that precision that was "
    "measured on this machine, not what its data sheet says.",
    "Spread is the distance from the slowest to the fastest repeat, over the median. Repeats are within one job: they "
    "show how steady a machine is, not how far two days differ.",
)


def write_page(machines: Sequence[Machine], path: Path) -> None:
    """Writes the page, in one rename.

    Args:
        machines: this one first.
        path: of the file.

    Raises:
        OSError: it cannot be written.
    """
    title = f"Benchmark of {machines[0].words}" if len(machines) == 1 else f"Benchmark of {len(machines)} machines"
    data = as_json(machines)
    written = page(title, _body(title, machines), data, styles=OWN_STYLES, scripts=OWN_SCRIPTS)
    write_text(path, written)


def _body(title: str, machines: Sequence[Machine]) -> Iterator[Markup]:
    yield tag("header", tag("h1", title), [_head(one, len(machines)) for one in machines])
    if any(one.results.measured for one in machines):
        yield tag("div", id="controls", role="group", aria_label="what is shown")
        note = "The charts need JavaScript. All values are in the table below."
        yield tag("noscript", tag("p", note, class_="problem"))
        yield tag("div", id="bars", class_="wide")
        yield tag("h2", "Scaling", id="scaling-title", hidden=True)
        yield tag("div", id="scaling", class_="wide")
        yield tag("h2", "All figures")
        yield tag("div", _table(machines), class_="card across", id="figures")
    yield from _failures(machines)
    yield tag("h2", "How it was measured")
    yield tag("div", [tag("p", text) for text in HOW], _notes(machines), class_="card")
    yield tag("h2", "Published by others")
    yield tag(
        "p",
        "Other tasks, batches, data and versions: they compare these machines with one another, not with those above.",
        class_="sub",
    )
    for source in published():
        yield _source(source)


def _head(one: Machine, num_machines: int) -> Markup:
    value = one.results.value
    versions = value["settings"].get("versions")
    parts = [f"{one.name}: {one.words}"] if num_machines > 1 else []
    parts += [f"measured until {str(value['date'])[:16].replace('T', ' ')}"]
    parts += [f"{name} {version}" for name, version in (versions or {}).items()]
    if one.usd_per_hour is not None:
        parts.append(f"{words.dollars(one.usd_per_hour)} an hour")
    return tag("p", " · ".join(parts), class_="sub")


def _table(machines: Sequence[Machine]) -> Markup:
    cells = [(one, cell) for one in machines for cell in one.results.measured]
    names = columns_of(cells, is_one=len(machines) == 1)
    head = tag("tr", [tag("th", name) for name in names])
    rows = [row_of(one, cell) for one, cell in cells]
    body = [tag("tr", [tag("td", row.get(name, "")) for name in names]) for row in rows]
    return tag("table", tag("thead", head), tag("tbody", body))


def _notes(machines: Sequence[Machine]) -> Markup:
    several = len(machines) > 1
    return tag(
        "ul", [tag("li", f"{one.name}: {line}" if several else line) for one in machines for line in one.notes()]
    )


def _failures(machines: Sequence[Machine]) -> Iterator[Markup]:
    failed = [(one, cell) for one in machines for cell in one.results.cells if not is_measured(cell)]
    if not failed:
        return
    yield tag("h2", "Not measured")
    items = []
    for one, cell in failed:
        several = f"{one.name}: " if len(machines) > 1 else ""
        name = f"{several}{cell['model']}, {cell['precision']}, {cell['strategy']}, {cell['processes']} processes"
        items.append(tag("li", tag("b", name), f": {cell.get('reason') or 'no reason is known'}"))
    yield tag("div", tag("ul", items, class_="failed"), class_="card")


def _source(source: Source) -> Markup:
    head = ("machine", "GPUs", "model", "precision", "tokens", "batch", "sequences/s")
    rows = [
        (row.machine, row.num_gpus, row.model, row.precision, row.sequence_length, row.batch_size or "",
         words.number(row.samples_per_s))
        for row in source.rows
    ]  # fmt: skip
    table = tag(
        "table",
        tag("thead", tag("tr", [tag("th", name) for name in head])),
        tag("tbody", [tag("tr", [tag("td", str(value)) for value in row]) for row in rows]),
    )
    about = f"{source.task[0].upper()}{source.task[1:]}. {source.note} Copied on {source.accessed}."
    return tag(
        "details",
        tag("summary", source.name, tag("small", f" · {source.date} · {len(rows)} figures")),
        tag("p", tag("a", source.url, href=source.url, rel="noreferrer"), class_="note"),
        tag("p", about, class_="note"),
        tag("div", table, class_="scroll"),
        class_="published",
    )
