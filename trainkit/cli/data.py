"""`trainkit data`: commands for data sets."""

import argparse
from typing import Any

from trainkit.cli import augment

EXAMPLES = """\
examples:
  trainkit data augment runs/digits more_digits --num 5000
"""


def add_parser(commands: Any) -> list[argparse.ArgumentParser]:
    """Adds `data` and its subcommands to `commands`, of argparse; returns those that use a checkpoint."""
    data = commands.add_parser(
        "data",
        help="enlarge a data set",
        description="Commands for data sets.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own = data.add_subparsers(title="commands", required=True, metavar="COMMAND")
    return [augment.add_parser(own)]
