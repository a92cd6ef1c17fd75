"""`trainkit export`: a trained model in the format of another program."""

import argparse
from typing import Any

from trainkit.cli.output import rank
from trainkit.errors import ConfigError

EXAMPLES = """\
examples:
  trainkit export runs/bert --to huggingface bert_of_mine
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Adds `export` to `commands`, of argparse; returns its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "export",
        help="write a trained model for other programs: huggingface",
        description="Write a trained model in the format of another program, completely or not at all: `huggingface`, "
        "a directory for from_pretrained of transformers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="RUN", help="a run directory that has ended, or one of its checkpoints/step_*")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="huggingface, or what the recipe offers")
    parser.add_argument("target", metavar="TARGET", help="the directory or file to write; it must not exist")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the stored configuration")
    parser.add_argument(
        "--averaged",
        action=argparse.BooleanOptionalAction,
        help="the averaged weights, or the trained ones; default: those that the recipe evaluates with",
    )
    parser.set_defaults(run=_run)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from trainkit.job import export

    if rank():
        raise ConfigError("trainkit export runs in one process: type it without torchrun")
    export(
        arguments.path,
        arguments.to,
        arguments.target,
        arguments.overrides,
        averaged=arguments.averaged,
        config_dir=arguments.config_dir,
        trust=arguments.trust,
    )
