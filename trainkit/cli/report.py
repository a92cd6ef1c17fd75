"""`trainkit report`: a page of everything that a run has logged."""

import argparse
from pathlib import Path
from typing import Any

from trainkit.cli.output import say, writing
from trainkit.errors import ConfigError

EXAMPLES = """\
examples:
  trainkit report runs/faces                          writes runs/faces/report.html
  trainkit report runs/faces --output faces.html      a copy to send: the file needs no other
"""


def add_parser(commands: Any) -> None:
    """Adds `report` to `commands`, of argparse."""
    parser = commands.add_parser(
        "report",
        help="write a page with the curves, pictures, tables and configuration of a run",
        description="Write one HTML file with the curves, pictures through time, tables, texts and the configuration "
        "of a run, from metrics.jsonl and media/ in its directory. It is written at evaluations and at the end of "
        "a run; this command makes it for a run that was killed, or that had tracking.report=false.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="RUN", help="a run directory")
    parser.add_argument("--output", metavar="FILE", help="the page; default: report.html in the run directory")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from trainkit.tracking.report import FILE_NAME, write_report

    run_dir = Path(arguments.path).expanduser()
    output = Path(arguments.output).expanduser() if arguments.output else run_dir / FILE_NAME
    with writing(output):
        is_written = write_report(run_dir, output)
    if not is_written:
        raise ConfigError(f"{run_dir} has no metrics.jsonl: give the directory of a run, run_dir of its configuration")
    say(f"the report is in {output}")
