"""The `trainkit` command: parses, calls, prints."""

import argparse
import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trainkit.cli import checkpoint, doctor, topo
from trainkit.distributed.agent import FAILED, recall, remember
from trainkit.errors import TrainkitError

_PATIENCE_S = 6.0
_PIPE_CLOSED = 141  # as of a program that SIGPIPE ended
HELP_TRAIN = """\
configuration: key=value, any number of them; a group's name chooses a file of it, a dotted key changes one value
  trainkit train recipe=bert data.path=~/texts recipe.batch_size=32 precision=bf16
  trainkit train --processes 2 recipe=progressive_gan data.path=~/pictures
  torchrun --standalone --nproc-per-node=2 launch/train.py recipe=progressive_gan data.path=~/pictures
--list shows every group, option and key
"""


HELP = """\
examples:
  trainkit train recipe=bert data.path=~/texts
  trainkit evaluate runs/bert
  trainkit checkpoint ls runs/bert
  trainkit topo show
  trainkit doctor
"""
HELP_EVALUATE = """\
examples:
  trainkit evaluate runs/bert
  trainkit evaluate runs/bert data.path=~/other_texts
  trainkit evaluate runs/mine --trust            a recipe of your own, found from the current directory
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code: 0 done, 1 the answer is no, 2 an error to mend, 130 interrupted."""
    arguments = parse(_parser(), argv)
    from_here = getattr(arguments, "from_here", False) or getattr(arguments, "trust", False)
    return guarded(lambda: arguments.run(arguments), from_here=from_here)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What `parser` makes of `argv`, with options before, between or after the key=value."""
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes positional arguments of a command from one place only
        arguments.overrides += rest
    return arguments


def guarded(function: Callable[[], int | None], *, from_here: bool = False) -> int:
    """Runs `function` for an exit code; an error of ours is one line on stderr, told by one rank, and exit code 2.

    from_here: whether Python finds modules in the current directory, where `_target_` of one's own may lie. Commands
    that read a foreign checkpoint must not, unless it is trusted.
    """
    if recall(FAILED) is not None:
        return 2  # torchrun starts anew what has said why it cannot run
    _find_modules(from_here)
    try:
        code = function() or 0
        sys.stdout.flush()
        return code
    except TrainkitError as error:
        _tell(error)
        if error.recurs:  # last: a rank that starts later ends as soon as it reads this, and the job with it
            remember(FAILED, str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if not _is_stdout_gone():
            raise
        return _PIPE_CLOSED


def _find_modules(from_here: bool) -> None:
    here, own = Path.cwd(), Path(__file__).resolve().parents[2]
    if from_here and str(here) not in sys.path:
        sys.path.insert(0, str(here))
    elif not from_here and here != own:  # `python -m` has put it there
        sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]


def _is_stdout_gone() -> bool:
    """Whether what reads our output, such as `head`, has closed it; nothing is written there any more then."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    is_gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if is_gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its exit
    return is_gone


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
        prog="trainkit",
        description="Distributed training in PyTorch that is right, fast, and shows it.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train what a configuration describes",
        description="Train what a configuration describes, on this process, on N, or on all that torchrun started.",
        epilog=HELP_TRAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_train_arguments(train)
    train.set_defaults(run=run_train, from_here=True, command=["-m", "trainkit.cli", "train"])
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a checkpoint on its held-out data",
        description="Measure a run's newest checkpoint, or the one given, on its held-out data or on others.",
        epilog=HELP_EVALUATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument("path", metavar="RUN", help="a run directory, or one of its checkpoints/step_*")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the stored configuration")
    add_config_dir(evaluate)
    add_trust(evaluate)
    evaluate.set_defaults(run=_run_evaluate)
    checkpoint.add_parser(commands)
    topo.add_parser(commands)
    doctor.add_parser(commands)
    return parser


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `trainkit train` and `launch/train.py`."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="the configuration")
    add_config_dir(parser)
    parser.add_argument(
        "--processes",
        default="1",
        metavar="N",
        help="start N processes on this machine, as torchrun does; auto: one for each GPU; default: this process",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--list", action="store_true", help="list groups, options and keys and stop")


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-dir",
        metavar="DIR",
        help="a directory laid out like conf/ with recipes, data sets and experiments of your own",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """`--trust`, of the commands that use a checkpoint's configuration."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run what the checkpoint's configuration names, such as a recipe of your own, found from the current "
        "directory too; without it only what is of trainkit and its recipes is run",
    )


def run_train(arguments: argparse.Namespace) -> int | None:
    """What `trainkit train` does with its parsed arguments."""
    show = arguments.list or arguments.print_config
    if arguments.processes != "1" and not show:
        return _start_processes(arguments)
    # Hydra takes a while to import.
    from trainkit.cli.listing import listing
    from trainkit.config import CONF_DIR, check, compose_unresolved, groups, resolve, to_yaml

    composed = compose_unresolved(arguments.overrides, arguments.config_dir)
    config = resolve(composed)
    if arguments.list:
        print("groups, chosen by name=option:")
        for name, options in groups(arguments.config_dir).items():
            print(f"  {name}: {', '.join(options)}")
        print("\nkeys of this choice and their values, changed by key=value:\n")
        own = [Path(arguments.config_dir).expanduser()] if arguments.config_dir else []
        print(listing(config, [*own, CONF_DIR]))
    elif arguments.print_config:
        check(config)
        print(to_yaml(config), end="")
    else:
        from trainkit.job import train

        train(composed)
    return None


def _start_processes(arguments: argparse.Namespace) -> int:
    from trainkit.distributed.processes import count, require_no_job, run

    num = count(arguments.processes)
    require_no_job(f"--processes={arguments.processes}")
    config_dir = ["--config-dir", arguments.config_dir] if arguments.config_dir else []
    return run([*arguments.command, *config_dir, *arguments.overrides], num)


def _run_evaluate(arguments: argparse.Namespace) -> None:
    from trainkit.job import evaluate

    metrics = evaluate(arguments.path, arguments.overrides, config_dir=arguments.config_dir, trust=arguments.trust)
    if int(os.environ.get("RANK", 0)) == 0:
        for name, value in metrics.items():
            print(f"{name} {value:.6g}")


def _version() -> str:
    from trainkit import __version__

    return f"trainkit {__version__}"


if __name__ == "__main__":
    sys.exit(main())
