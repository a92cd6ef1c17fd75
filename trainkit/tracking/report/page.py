"""Page: the report of one run or several as one HTML file, with its pictures and curves inside."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainkit.tracking.command import as_typed
from trainkit.tracking.console import duration
from trainkit.tracking.metrics_file import MetricsFile
from trainkit.tracking.report.document import document
from trainkit.tracking.report.evaluation import evaluation_section, last_values
from trainkit.tracking.report.events import events_section
from trainkit.tracking.report.machine import machine_section
from trainkit.tracking.report.markup import Markup, page, tag
from trainkit.tracking.report.media import Encoded, tables_section, through_time
from trainkit.tracking.report.parts import parts_bar
from trainkit.tracking.report.record import Record, read_record
from trainkit.tracking.report.tree import files_section
from trainkit.whole_file import write_text

FILE_NAME = "report.html"
NUM_COLOURS = 8  # of runs; c0 to c7 in report.css


def write_report(
    run_dir: Path,
    path: Path | None = None,
    *,
    status: str | None = None,
    num_samples: int | None = None,
    encoded: Encoded | None = None,
    file: MetricsFile | None = None,
) -> bool:
    """Writes the report of a run directory, in one rename.

    Args:
        run_dir: the run directory.
        path: the file; None: report.html in the run directory.
        status: such as `finished`; None: not known.
        num_samples: the position at which the run ends; None: not known.
        encoded: pictures that were encoded before, which are taken from here and added.
        file: metrics.jsonl as it was read before, which is read on.

    Returns:
        False where the directory has no metrics.jsonl.

    Raises:
        DataError: metrics.jsonl is no record of a run.
        OSError: the file cannot be written.
    """
    record = read_record(run_dir, status=status, num_samples=num_samples, file=file)
    if record is None:
        return False
    write_page([record], path or run_dir / FILE_NAME, encoded)
    return True


def write_page(records: Sequence[Record], path: Path, encoded: Encoded | None = None) -> None:
    """Writes the report of runs, in one rename.

    Args:
        records: of the runs, of which the curves are drawn over one another.
        path: the file.
        encoded: as for `write_report`.

    Raises:
        OSError: the file cannot be written.
    """
    written = page(title(records), _body(records, {} if encoded is None else encoded), document(records))
    write_text(path, written)


def live_page(records: Sequence[Record], address: str, encoded: Encoded) -> str:
    """The report of runs as a page that follows them.

    Args:
        records: of the runs.
        address: where the page finds what `live_document` returns, on the same server.
        encoded: as for `write_report`.
    """
    data = document(records) | {"live": address}
    return page(title(records), _body(records, encoded, live=True), data, connect="'self'")


def live_document(records: Sequence[Record], encoded: Encoded) -> dict[str, Any]:
    """The numbers of runs, and a digest of each section of their page, by which it knows what to load again."""
    digests = {name: _digest(made) for name, made in _sections(records, encoded)}
    return document(records) | {"sections": digests}


def with_names(records: Sequence[Record], names: Sequence[str]) -> list[Record]:
    """Records under other names, such as their paths where the names are the same."""
    return [replace(record, name=name) for record, name in zip(records, names, strict=True)]


def title(records: Sequence[Record]) -> str:
    """The names of runs in a few words."""
    names = [record.name for record in records]
    return ", ".join(names) if len(names) < 4 else f"{len(names)} runs: {names[0]}, {names[1]}, ..."


def _body(records: Sequence[Record], encoded: Encoded, *, live: bool = False) -> Iterator[Markup]:
    if live:
        yield tag(
            "p", tag("a", "all runs", href="."), tag("span", "following", id="live", role="status"), class_="live"
        )
    for name, made in _sections(records, encoded):
        yield tag("section", made, id=name, data_digest=_digest(made) if live else None)


def _sections(records: Sequence[Record], encoded: Encoded) -> Iterator[tuple[str, list[Markup]]]:
    """The name and the content of each section. Those of charts are filled by the script."""
    yield "head", [_head(records)]
    yield "evaluation", list(evaluation_section(records))
    yield "charts", list(_charts(records))
    yield "values", list(last_values(records))
    yield "media", list(through_time(records, encoded))
    yield "events", list(events_section(records))
    yield "machine", list(machine_section(records))
    yield "tables", list(tables_section(records))
    yield "files", [*files_section(records), *_commands(records)]


def _digest(made: Sequence[Markup]) -> str:
    return hashlib.blake2b("".join(made).encode("utf-8", errors="replace"), digest_size=8).hexdigest()


def _head(records: Sequence[Record]) -> Markup:
    if len(records) == 1:
        (record,) = records
        return tag(
            "header", _verdict(record), tag("h1", record.name), _state(record), parts_bar(record), _problems(record)
        )
    rows = [
        tag(
            "li",
            tag(
                "label",
                tag("input", type="checkbox", checked=True, data_shows=number),
                tag("i", class_=f"c{number % NUM_COLOURS}"),
                tag("b", record.name),
            ),
            _verdict(record),
            _state(record),
            _problems(record),
        )
        for number, record in enumerate(records)
    ]
    return tag("header", tag("h1", f"{len(records)} runs"), tag("ul", rows, class_="runs"))


def _verdict(record: Record) -> Markup | None:
    result = record.json.get("result")
    verdict = result.get("verdict") if isinstance(result, dict) else None
    if not (isinstance(verdict, dict) and isinstance(verdict.get("text"), str)):
        return None
    beats = verdict.get("beats_baseline")
    return tag(
        "p",
        verdict["text"][:2000],
        class_=f"verdict {'good' if beats is True else 'poor' if beats is False else ''}".strip(),
    )


def _state(record: Record) -> Markup:
    file, parts = record.file, [record.status] if record.status else []
    parts += [f"step {file.last_step:,}", f"{file.position:,} samples", f"{duration(_bounded(file.seconds))} of logs"]
    if record.status == "running" and (left := file.last.get("eta_s")) is not None:
        parts.append(f"{duration(_bounded(left))} left")
    if file.started == file.started:
        parts.append(time.strftime("last line %Y-%m-%d %H:%M", time.localtime(_bounded(file.started + file.seconds))))
    return tag("p", " · ".join(parts), class_="sub")


def _bounded(seconds: float) -> float:
    """A time that any calendar has, whatever a file says."""
    return seconds if 0 <= seconds <= 4e9 else 0.0


def _problems(record: Record) -> list[Markup]:
    return [tag("p", problem, class_="problem") for problem in record.problems]


def _charts(records: Sequence[Record]) -> Iterator[Markup]:
    if not any(record.measured.training or record.measured.evaluation for record in records):
        return
    yield tag("div", id="controls", role="group", aria_label="all curves")
    yield tag(
        "noscript",
        tag("p", "The curves need JavaScript. The last, lowest and highest values are below.", class_="problem"),
    )
    for name, words in (("curves", "Curves"), ("other", "Other curves of training"), ("speed", "Speed")):
        yield tag("div", tag("h2", words), tag("div", class_="wide"), id=f"charts-{name}", hidden=True)


def _commands(records: Sequence[Record]) -> Iterator[Markup]:
    directories = [str(record.directory) for record in records]
    own = [["trainkit", "report", *directories], ["trainkit", "dashboard", str(records[0].directory.parent)]]
    commands = dict.fromkeys([*(line for record in records for line in record.commands), *map(as_typed, own)])
    yield tag("h2", "What to type next")
    yield tag("div", [tag("pre", command, class_="command") for command in commands])
