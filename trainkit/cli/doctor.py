"""`trainkit doctor`: reports what is installed, what is missing, and the commands that install it."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from trainkit.cli.output import console, say
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from trainkit.cli.findings import Finding

MARKS = {"ok": ("✓", "green"), "missing": ("-", "yellow"), "broken": ("✗", "bold red")}
EXAMPLES = """\
examples:
  trainkit doctor                    what is installed, and how to install what is missing
  trainkit doctor --build            compile the ops now, not at the start of a run
  TRAINKIT_CUDA_ARCHS=8.0,9.0 trainkit doctor --build --force
exit code: 0, or 1 if something that is configured cannot work
"""


def add_parser(commands: Any) -> None:
    """Adds `doctor` to `commands`, of argparse."""
    parser = commands.add_parser(
        "doctor",
        help="report what is installed and compiled, and how to install what is missing",
        description="Examine this machine: torch, GPUs, compilers, compiled ops, other libraries, cache.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--build", action="store_true", help="compile the ops now, if no compiled library fits")
    parser.add_argument("--force", action="store_true", help="with --build: compile them again")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from trainkit.cli.findings import examine

    if arguments.force and not arguments.build:
        raise ConfigError("--force goes with --build; type: trainkit doctor --build --force")
    if arguments.build:
        _build(arguments.force)
    sections = examine()
    if arguments.json:
        print(json.dumps({name: [asdict(finding) for finding in found] for name, found in sections.items()}, indent=2))
    else:
        _show(sections)
    return int(any(finding.state == "broken" for found in sections.values() for finding in found))


def _build(force: bool) -> None:
    from trainkit.ops import library

    path = library.compiled(again=force)
    say(f"the ops are compiled: {path}")


def _show(sections: "dict[str, list[Finding]]") -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    out = console()
    width = max(len(finding.name) for found in sections.values() for finding in found)
    for title, found in sections.items():
        out.print(Text(title, style="bold"))
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(width=1)
        table.add_column(width=width)
        table.add_column(overflow="fold")
        for finding in found:
            mark, style = MARKS[finding.state]
            value = Text(finding.value)
            if finding.remedy:
                value.append(f"\n→ {finding.remedy}", style="green")
            table.add_row(Text(mark, style=style), finding.name, value)
        out.print(Padding(table, (0, 0, 0, 2), expand=False))
        out.print()
