"""`trainkit export`: a trained model in the format of another program."""

import argparse
from typing import Any

from trainkit.cli.output import rank
from trainkit.errors import ConfigError

EXAMPLES = """\
examples:
  trainkit export runs/bert --to huggingface bert_of_mine
  trainkit export runs/bert --to onnx bert.onnx
  trainkit export runs/bert --to onnx bert_int8.onnx --int8 dynamic --max-drop 0.005
  trainkit export runs/faces --to onnx generator.onnx
  trainkit export runs/reviews --to edge reviews.zip --int8 dynamic
  trainkit export runs/bert --to onnx bert.onnx --recipient 'ssh-ed25519 AAAA...'
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Adds `export` to `commands`, of argparse; returns its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "export",
        help="write a trained model for other programs: huggingface, onnx, edge",
        description="Write a trained model in the format of another program, completely or not at all: `huggingface`, "
        "a directory for from_pretrained of transformers; `onnx`, one file, compared with PyTorch by onnxruntime; or "
        "`edge`, that file with a program that runs it on a small device, which needs onnxruntime and numpy alone.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="RUN", help="a run directory that has ended, or one of its checkpoints/step_*")
    parser.add_argument(
        "--to", required=True, metavar="FORMAT", help="huggingface, onnx, edge, or what the recipe offers"
    )
    parser.add_argument(
        "target", metavar="TARGET", help="the directory or file to write; it must not exist; of edge, also a .zip"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the stored configuration")
    parser.add_argument(
        "--averaged",
        action=argparse.BooleanOptionalAction,
        help="the averaged weights, or the trained ones; default: those that the recipe evaluates with",
    )
    parser.add_argument(
        "--int8",
        choices=("dynamic", "static"),
        help="onnx, edge: 8-bit weights, with activations scaled as they come or as calibrated on held-out data; "
        "prints the accuracy before and after",
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="DROP",
        help="the drop by --int8 of the metric (accuracy, F1, Spearman's correlation or R2, all at most 1) above which "
        "nothing is written; default: 0.01, one point of a hundred",
    )
    parser.add_argument(
        "--encrypt",
        action="store_true",
        help="encrypt each file for the recipients of the checkpoint, with .age after its name",
    )
    parser.add_argument(
        "--recipient",
        action="append",
        default=[],
        metavar="KEY",
        help="encrypt each file for the owner of this public key, age1... or 'ssh-ed25519 AAAA...'; may be repeated",
    )
    parser.set_defaults(run=_run)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from trainkit.job import export

    if rank():
        raise ConfigError("trainkit export runs in one process: type it without torchrun")
    if arguments.int8 is not None and arguments.to not in ("onnx", "edge"):
        raise ConfigError(
            f"--int8 {arguments.int8} is for --to onnx and edge, and not for --to {arguments.to}: leave it out"
        )
    if arguments.max_drop is not None and arguments.int8 is None:
        raise ConfigError(f"--max-drop {arguments.max_drop:g} is for --int8, which is not given: leave it out")
    limit = {} if arguments.max_drop is None else {"max_drop": arguments.max_drop}
    export(
        arguments.path,
        arguments.to,
        arguments.target,
        arguments.overrides,
        averaged=arguments.averaged,
        int8=arguments.int8,
        **limit,
        encrypt=arguments.encrypt,
        recipients=arguments.recipient,
        config_dir=arguments.config_dir,
        trust=arguments.trust,
    )
