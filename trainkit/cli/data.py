"""`trainkit data`: commands for data sets."""

import argparse
from typing import Any

from trainkit.cli import augment, inspection, leakage, prepare, selection

EXAMPLES = """\
examples:
  trainkit data inspect ~/texts
  trainkit data select ~/texts --to ~/texts_selected --drop-exact --drop-near
  trainkit data prepare ~/texts --to /data/texts
  trainkit data audit train.csv test.csv --label label
  trainkit data augment runs/digits more_digits --num 5000
"""


def add_parser(commands: Any) -> list[argparse.ArgumentParser]:
    """Adds `data` and its subcommands to `commands`, of argparse; returns those that use a checkpoint."""
    data = commands.add_parser(
        "data",
        help="inspect text or images, select what is interesting, make shards, look for leakage, or enlarge a data set",
        description="Commands for data sets.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own = data.add_subparsers(title="commands", required=True, metavar="COMMAND")
    inspection.add_parser(own)
    prepare.add_parser(own)
    leakage.add_parser(own)
    return [selection.add_parser(own), augment.add_parser(own)]
