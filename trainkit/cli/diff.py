"""`trainkit diff`: what differs between two runs, and where their curves part."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainkit.cli.output import console
from trainkit.cli.reproduce import show

EXAMPLES = """\
examples:
  trainkit diff runs/first runs/second
"""


def add_parser(commands: Any) -> None:
    """Adds `diff` to `commands`, of argparse."""
    parser = commands.add_parser(
        "diff",
        help="compare two runs: configuration, data, code, packages, machine, curves and weights",
        description="Compare two runs by their manifests and by what they recorded: what differs and what it can "
        "change, the values of their curves, and the first step and tensor in which they are not the same. Exit code "
        "1: they parted.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("b", type=Path, metavar="RUN", help="another one")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from rich.table import Table

    from trainkit import manifest
    from trainkit.reproduction import compare
    from trainkit.reproduction.again import files_of

    first, second = arguments.a.expanduser(), arguments.b.expanduser()
    before, now = manifest.read(first), manifest.read(second)
    comparison = compare(first, second)
    show(manifest.differences(before, now, files=(files_of(first), files_of(second))), f"{first} -> {second}")
    table = Table("curve", "step", f"{first.name}", f"{second.name}", "relative difference", box=None)
    for row in _curves(first, second):
        table.add_row(*row)
    if table.row_count:
        console().print(table)
    print(comparison.text)
    return 1 if comparison.result == "parted" else 0


def _curves(first: Path, second: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Of each curve that both have, the values at the last step that both have, and the largest difference."""
    from trainkit.tracking.jsonl import FILE_NAME
    from trainkit.tracking.series import read_series

    if not ((first / FILE_NAME).is_file() and (second / FILE_NAME).is_file()):
        return
    a, b = read_series(first / FILE_NAME), read_series(second / FILE_NAME)
    for old, new in ((a.evaluation, b.evaluation), (a.training, b.training)):
        for name in (name for name in old if name in new):
            values, others = (dict(zip(*(part.tolist() for part in side[name]), strict=True)) for side in (old, new))
            steps = [step for step in values if step in others]
            if steps:
                worst = max(_relative(values[step], others[step]) for step in steps)
                last = steps[-1]
                yield name, f"{last:,.0f}", f"{values[last]:.6g}", f"{others[last]:.6g}", f"{worst:.1e}"


def _relative(a: float, b: float) -> float:
    return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b))
