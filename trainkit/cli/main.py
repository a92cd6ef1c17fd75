"""The `trainkit` command."""

import argparse
import atexit
import gc
import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trainkit.cli import (
    agent,
    benchmark,
    card,
    checkpoint,
    dashboard,
    data,
    diff,
    doctor,
    export,
    launch,
    manifest,
    plan,
    report,
    reproduce,
    seeds,
    sweep,
    topo,
)
from trainkit.distributed import launchers
from trainkit.distributed.agent import FAILED, recall, remember
from trainkit.errors import TrainkitError

_PATIENCE_S = 6.0
_PIPE_CLOSED = 141  # as of a program that SIGPIPE ended
HELP_TRAIN = """\
configuration: any number of key=value; the name of a group selects one of its files, a dotted key changes one value
  trainkit train recipe=bert data.path=~/texts recipe.batch_size=32 precision=bf16
  trainkit train --processes 2 recipe=progressive_gan data.path=~/pictures
  torchrun --standalone --nproc-per-node=2 launch/train.py recipe=progressive_gan data.path=~/pictures
--list shows every group, option and key
"""


HELP = """\
examples:
  trainkit train recipe=bert data.path=~/texts
  trainkit agent --nnodes 2 --node-rank 0 --rdzv-endpoint node1:29400 recipe=bert data.path=/shared/texts
  trainkit launch --hosts node1:8,node2:8 -- recipe=bert data.path=/shared/texts
  trainkit launch --slurm cluster.nodes=4 recipe=bert data.path=/shared/texts
  trainkit seeds 5 recipe=bert_finetune data.path=reviews.csv
  trainkit sweep recipe=bert data.path=~/texts optimizer.lr=log(1e-4,1e-2)
  trainkit evaluate runs/bert
  trainkit export runs/bert --to onnx bert.onnx
  trainkit report runs/bert
  trainkit reproduce runs/bert
  trainkit diff runs/bert runs/other
  trainkit manifest show runs/bert
  trainkit card runs/bert
  trainkit dashboard runs
  trainkit checkpoint ls runs/bert
  trainkit data inspect ~/texts
  trainkit data select ~/texts --to ~/texts_selected --drop-exact --drop-near
  trainkit data prepare ~/texts --to /data/texts
  trainkit data audit train.csv test.csv
  trainkit data augment runs/digits more_digits --num 5000
  trainkit benchmark
  trainkit plan --preset dgx-h100 experiment=bert_large
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
    """Runs one command.

    Args:
        argv: arguments; None: those of the process.

    Returns:
        The exit code: 0: success, 1: a check failed, 2: an error that the user can fix, 130: interrupted.
    """
    arguments = parse(_parser(), argv)
    from_here = getattr(arguments, "from_here", False) or getattr(arguments, "trust", False)
    return guarded(lambda: arguments.run(arguments), from_here=from_here, temporary=getattr(arguments, "temporary", 2))


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses arguments, with options before, between or after the key=value.

    Args:
        parser: of the command.
        argv: arguments; None: those of the process.
    """
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse accepts the positional arguments of a command in one place only
        arguments.overrides += rest
    return arguments


def guarded(function: Callable[[], int | None], *, from_here: bool = False, temporary: int = 2) -> int:
    """Calls a function, and prints a TrainkitError as one line on stderr, by one rank only.

    Args:
        function: returns an exit code; None: 0.
        from_here: whether Python can import modules from the current directory, for `_target_` of user code. It must be
            False for commands that read an untrusted checkpoint.
        temporary: the exit code for a TrainkitError that would not recur. Commands that train give 1: to what starts
            jobs, 2 says that it need not start this one again.

    Returns:
        The exit code: that of `function`, 2 for a TrainkitError, 130 for an interrupt, 141 for a closed pipe.
    """
    if recall(FAILED) is not None:
        return 2  # torchrun restarts a process that has already printed why it cannot run
    _find_modules(from_here)
    if "torch" not in sys.modules:  # its warnings about closed connections come with the stack of its own code
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    atexit.register(gc.freeze)  # at exit Python searches all objects for cycles, which takes longer than all else there
    try:
        code = function() or 0
        sys.stdout.flush()
        return code
    except TrainkitError as error:
        _print_error(error)
        if error.recurs:  # last: a rank that starts later exits as soon as it reads this, and so does the job
            remember(FAILED, str(error))
        return 2 if error.recurs else temporary
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
    """Whether the reader of our output, such as `head`, has closed it; if so, later output is discarded."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    is_gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if is_gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout again at exit
    return is_gone


def _print_error(error: TrainkitError) -> None:
    rank = int(os.environ.get("RANK", 0))
    if rank:
        # Most errors are raised on all ranks, and rank 0 prints; torchrun then ends this process before it prints, too.
        time.sleep(_PATIENCE_S)
    where = f" (rank {rank})" if rank else ""
    message = " ".join(str(error).split())
    print(f"trainkit: error{where}: {message}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainkit",
        description="Distributed training in PyTorch.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a recipe by a configuration",
        description="Train a recipe by a configuration, in this process, in N, or in those that torchrun started.",
        epilog=HELP_TRAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_train_arguments(train)
    train.set_defaults(run=run_train, from_here=True, temporary=1, command=["-m", "trainkit.cli", "train"])
    evaluate = commands.add_parser(
        "evaluate",
        help="evaluate a checkpoint on its held-out data",
        description="Evaluate a checkpoint, or the newest one of a run, on its held-out data or on other data. Print "
        "whether it beats its baselines, each metric with its baselines and its 95 % interval over the held-out "
        "samples, and what the audit of the data has found.",
        epilog=HELP_EVALUATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument("path", metavar="RUN", help="a run directory, or one of its checkpoints/step_*")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the stored configuration")
    add_config_dir(evaluate)
    add_trust(evaluate)
    evaluate.set_defaults(run=_run_evaluate)
    add_config_dir(agent.add_parser(commands))
    add_config_dir(launch.add_parser(commands))
    add_config_dir(seeds.add_parser(commands))
    add_config_dir(sweep.add_parser(commands))
    add_trust(add_config_dir(export.add_parser(commands)))
    report.add_parser(commands)
    add_trust(add_config_dir(reproduce.add_parser(commands)))
    diff.add_parser(commands)
    manifest.add_parser(commands)
    card.add_parser(commands)
    dashboard.add_parser(commands)
    checkpoint.add_parser(commands)
    for parser_of_run in data.add_parser(commands):
        add_trust(parser_of_run)
    add_config_dir(benchmark.add_parser(commands))
    add_config_dir(plan.add_parser(commands))
    topo.add_parser(commands)
    doctor.add_parser(commands)
    return parser


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `trainkit train` and `launch/train.py`."""
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


def add_config_dir(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds `--config-dir`; returns the parser."""
    parser.add_argument(
        "--config-dir",
        metavar="DIR",
        help="a directory with the layout of conf/, for your own recipes, data sets and experiments",
    )
    return parser


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds `--trust`, for commands that use the configuration of a checkpoint."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run any code that the checkpoint's configuration names, such as your own recipe, also from the current "
        "directory; otherwise only code of trainkit and its recipes is run",
    )


def run_train(arguments: argparse.Namespace) -> int | None:
    """Runs `trainkit train`.

    Args:
        arguments: parsed; see `add_train_arguments`.

    Returns:
        The exit code of the processes that were started; None where none were.

    Raises:
        TrainkitError: for any error that the user can fix.
    """
    show = arguments.list or arguments.print_config
    if arguments.processes != "1" and not show:
        return _start_processes(arguments)
    launchers.join()  # before a first error, which one rank prints
    # To import Hydra takes a while.
    from trainkit.cli.listing import listing
    from trainkit.config import CONF_DIR, check, compose_unresolved, groups, resolve, to_yaml

    composed = compose_unresolved(arguments.overrides, arguments.config_dir)
    config = resolve(composed)
    if arguments.list:
        print("groups, selected by name=option:")
        for name, options in groups(arguments.config_dir).items():
            print(f"  {name}: {', '.join(options)}")
        print("\nkeys of this configuration and their values, changed by key=value:\n")
        own = [Path(arguments.config_dir).expanduser()] if arguments.config_dir else []
        print(listing(config, [*own, CONF_DIR]))
    elif arguments.print_config:
        from trainkit.training.accumulation import checkable

        check(checkable(config))
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
    from trainkit.job import assess_run

    found, audit = assess_run(
        arguments.path, arguments.overrides, config_dir=arguments.config_dir, trust=arguments.trust
    )
    if int(os.environ.get("RANK", 0)) == 0:
        print(found.verdict().text)
        for line in found.table():
            print(line)
        if audit is not None:
            whose = " of the run's own data" if any(text.startswith("data") for text in arguments.overrides) else ""
            print(f"audit{whose}: {audit}")


def _version() -> str:
    from trainkit import __version__

    return f"trainkit {__version__}"


if __name__ == "__main__":
    sys.exit(main())
