"""The `trainkit` command: parses, calls, prints."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trainkit.cli import checkpoint, doctor, topo
from trainkit.comm.agent import FAILED, recall, remember
from trainkit.errors import TrainkitError

_PATIENCE_S = 6.0
HELP_TRAIN = """\
configuration: key=value, any number of them; a group's name chooses a file of it, a dotted key changes one value
  trainkit train recipe=bert data.path=~/texts recipe.batch_size=32 precision=bf16
  torchrun --standalone --nproc-per-node=2 launch/train.py recipe=progressive_gan data.path=~/pictures
--list shows every group, option and key
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code: 0 done, 1 the answer is no, 2 an error to mend, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    return guarded(lambda: arguments.run(arguments))


def guarded(function: Callable[[], int | None]) -> int:
    """Runs `function` for an exit code; an error of ours is one line on stderr, told by one rank, and exit code 2."""
    if recall(FAILED) is not None:
        return 2  # torchrun starts anew what has said why it cannot run
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # what `_target_` names may lie beside the user
    try:
        return function() or 0
    except TrainkitError as error:
        if error.recurs:
            remember(FAILED, str(error))
        _tell(error)
        return 2
    except KeyboardInterrupt:
        return 130


def _tell(error: TrainkitError) -> None:
    rank = int(os.environ.get("RANK", 0))
    if rank:
        # Most errors are raised on all ranks, and rank 0 speaks; its end ends this process before it speaks too.
        time.sleep(_PATIENCE_S)
    where = f" (rank {rank})" if rank else ""
    message = " ".join(str(error).split())
    print(f"trainkit: error{where}: {message}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainkit", description="Distributed training in PyTorch that is right, fast, and shows it."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train what a configuration describes",
        description="Train what a configuration describes, on this process or on all that torchrun started.",
        epilog=HELP_TRAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_train_arguments(train)
    train.set_defaults(run=run_train)
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a checkpoint on its held-out data",
        description="Measure a run's newest checkpoint, or the one given, on its held-out data.",
    )
    evaluate.add_argument("path", help="a run directory, or one of its checkpoints/step_*")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the stored configuration")
    evaluate.set_defaults(run=_run_evaluate)
    checkpoint.add_parser(commands)
    topo.add_parser(commands)
    doctor.add_parser(commands)
    return parser


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `trainkit train` and `launch/train.py`."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="the configuration")
    parser.add_argument(
        "--config-dir",
        metavar="DIR",
        help="a directory laid out like conf/ with recipes, data sets and experiments of your own",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--list", action="store_true", help="list groups, options and keys and stop")


def run_train(arguments: argparse.Namespace) -> None:
    """What `trainkit train` does with its parsed arguments."""
    from trainkit.config import check, compose, groups, to_yaml  # Hydra takes a while to import

    config = compose(arguments.overrides, arguments.config_dir)
    if arguments.list:
        print("groups, chosen by name=option:")
        for name, options in groups(arguments.config_dir).items():
            print(f"  {name}: {', '.join(options)}")
        print("\nkeys of this choice and their values, changed by key=value:\n")
        print(to_yaml(config))
    elif arguments.print_config:
        check(config)
        print(to_yaml(config), end="")
    else:
        from trainkit.job import train

        train(config)


def _run_evaluate(arguments: argparse.Namespace) -> None:
    from trainkit.job import evaluate

    metrics = evaluate(arguments.path, arguments.overrides)
    if int(os.environ.get("RANK", 0)) == 0:
        for name, value in metrics.items():
            print(f"{name} {value:.6g}")


def _version() -> str:
    from trainkit import __version__

    return f"trainkit {__version__}"


if __name__ == "__main__":
    sys.exit(main())
