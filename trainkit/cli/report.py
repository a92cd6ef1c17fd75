"""`trainkit report`: a page of everything that runs have logged."""

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli.output import say, writing
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from trainkit.tracking.report.record import Record

PATIENCE_S = 2.0
EXAMPLES = """\
examples:
  trainkit report runs/faces                          writes runs/faces/report.html
  trainkit report runs/faces --output faces.html      a copy to send: the file needs no other
  trainkit report runs/a runs/b runs/c                writes runs/report.html: the curves over one another
"""


def add_parser(commands: Any) -> None:
    """Adds `report` to `commands`, of argparse."""
    parser = commands.add_parser(
        "report",
        help="write a page with the curves, pictures, tables and configuration of a run, or of several",
        description="Write one HTML file with the curves, pictures through time, tables, texts and the configuration "
        "of a run, from metrics.jsonl and media/ in its directory. It is written at evaluations and at the end of "
        "a run; this command makes it for a run that was killed, or that had tracking.report=false, and for several "
        "runs to compare. `trainkit dashboard` shows the same page of runs that are going on.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", metavar="RUN", nargs="+", help="a run directory")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the page; default: report.html in the run directory, of several runs in the directory that they share",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from trainkit.tracking.report.page import FILE_NAME, with_names, write_page

    directories = list(dict.fromkeys(Path(path).expanduser() for path in arguments.paths))
    output = Path(arguments.output).expanduser() if arguments.output else _shared(directories) / FILE_NAME
    records = [_read(directory) for directory in directories]
    records = with_names(records, _names(records))
    with writing(output):
        write_page(records, output)
    say(f"the report is in {output}")


def _shared(directories: Sequence[Path]) -> Path:
    """The directory itself, or the one that lies around all of them."""
    if len(directories) == 1:
        return directories[0]
    return Path(os.path.commonpath([directory.absolute().parent for directory in directories]))


def _read(run_dir: Path) -> "Record":
    from trainkit.dashboard.status import status_of
    from trainkit.tracking.report.record import read_record

    record = read_record(run_dir, status=status_of(run_dir), progress=_progress(run_dir))
    if record is None:
        raise ConfigError(f"{run_dir} has no metrics.jsonl: give the directory of a run, run_dir of its configuration")
    return record


def _names(records: "Sequence[Record]") -> list[str]:
    """Runs of the same name are called by their paths."""
    counts = Counter(record.name for record in records)
    return [str(record.directory) if counts[record.name] > 1 else record.name for record in records]


def _progress(run_dir: Path) -> Callable[[int, int], None]:
    """Says every few seconds how much was read."""
    said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > PATIENCE_S:
            said = time.monotonic()
            say(f"reading {run_dir}: {100 * done // max(total, 1)} %")

    return progress
