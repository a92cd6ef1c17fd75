"""`trainkit reproduce`: makes a run again from its manifest, and says whether it is the same."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli.output import console, say
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from trainkit.manifest import Difference
    from trainkit.reproduction import Comparison

NUM_STEPS = 64
RESULT_FILE = "reproduction.json"
EXAMPLES = """\
examples:
  trainkit reproduce runs/bert                              the first 64 steps, compared to the bit
  trainkit reproduce runs/bert --all                        the whole run, with its evaluations
  trainkit reproduce runs/bert data.path=~/texts            the data are elsewhere here
  trainkit reproduce runs/bert --environment again/.venv    with the packages and the code that the run had
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Adds `reproduce` to `commands`, of argparse; returns its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "reproduce",
        help="make a run again from its manifest, and compare the two to the bit",
        description="Say what differs here from what a run was made of, and what each difference can change; make the "
        "run again in a new directory; and compare samples, batches, metrics and weights: the same bits, the same "
        "within rounding, or at which step and in which tensor the two parted. Exit code 1: they parted.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the run's configuration")
    how_long = parser.add_mutually_exclusive_group()
    how_long.add_argument("--steps", type=int, default=NUM_STEPS, metavar="N", help=f"default: {NUM_STEPS}")
    how_long.add_argument("--all", action="store_true", help="all steps, evaluations and checkpoints")
    parser.add_argument("--to", type=Path, metavar="DIR", help="the new run directory; default: RUN_again")
    parser.add_argument("--processes", type=int, metavar="N", help="default: as many as the run had")
    parser.add_argument(
        "--environment",
        type=Path,
        metavar="DIR",
        help="make a virtual environment in DIR, with the exact packages and the code of the run, and use it",
    )
    parser.add_argument("--compare-only", action="store_true", help="say what differs here, and train nothing")
    parser.set_defaults(run=_run)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if arguments.steps < 1:
        raise ConfigError(f"--steps={arguments.steps}: must be at least 1")
    if arguments.processes is not None and arguments.processes < 1:
        raise ConfigError(f"--processes={arguments.processes}: must be at least 1")
    run = arguments.path.expanduser()
    if arguments.environment is not None:
        return _in_environment(run, arguments)
    from trainkit.distributed.processes import require_no_job
    from trainkit.reproduction import compare
    from trainkit.reproduction.again import differences_here, differences_made, prepare

    require_no_job("trainkit reproduce")
    again = prepare(
        run,
        arguments.overrides,
        to=arguments.to,
        num_ranks=arguments.processes,
        config_dir=arguments.config_dir,
        trust=arguments.trust,
    )
    differing = [*again.changed, *differences_here(run, again.config)]
    show(differing, f"what differs here from {run}")
    for note in again.notes:
        say(f"note: {note}")
    if arguments.compare_only:
        return 0
    specification = again.write(None if arguments.all else arguments.steps)
    say(f"makes {run} again in {again.run_dir}" + ("" if arguments.all else f", {arguments.steps} steps"))
    if code := _train(specification, again.num_ranks, again.num_threads):
        return code
    comparison = compare(run, again.run_dir)
    differing += differences_made(run, again.run_dir)
    _keep(again.run_dir / RESULT_FILE, run, differing, comparison)
    _conclude(comparison, differing)
    if not arguments.all and comparison.result != "parted":
        say("to compare the whole run: the same command with --all")
    return 1 if comparison.result == "parted" else 0


def _train(specification: Path, num_ranks: int, num_threads: int | None) -> int:
    from trainkit.distributed.processes import run

    if num_threads is not None:  # the order of sums depends on it
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
    command = ["-m", "trainkit.cli.again", str(specification)]
    return (
        run(command, num_ranks) if num_ranks > 1 else subprocess.run([sys.executable, *command], check=False).returncode
    )


def _in_environment(run: Path, arguments: argparse.Namespace) -> int:
    """Types the same command in the environment of the run."""
    from trainkit.reproduction.pinned import build

    python = build(run, arguments.environment.expanduser(), trust=arguments.trust, report=say)
    options = [f"--to={arguments.to}"] if arguments.to else []
    options += ["--all"] if arguments.all else [f"--steps={arguments.steps}"]
    options += [f"--processes={arguments.processes}"] if arguments.processes else []
    options += [f"--config-dir={arguments.config_dir}"] if arguments.config_dir else []
    options += [name for name in ("--trust", "--compare-only") if vars(arguments)[name[2:].replace("-", "_")]]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [str(python.absolute()), "-m", "trainkit.cli", "reproduce", str(run), *options, *arguments.overrides]
    return subprocess.run(command, env=environment, check=False).returncode


def show(differing: "Sequence[Difference]", title: str) -> None:
    """Prints differences as a table.

    Args:
        differing: of two runs.
        title: above it.
    """
    from rich.table import Table

    if not differing:
        say(f"{title}: nothing")
        return
    table = Table("", "what", "was", "is", "can change", box=None, title=title, title_justify="left")
    for difference in differing:
        table.add_row(difference.part, difference.name, difference.before, difference.now, difference.effect)
    console().print(table)


def _conclude(comparison: "Comparison", differing: "Sequence[Difference]") -> None:
    print(comparison.text)
    for name, (first, second) in comparison.measured.items():
        print(f"{name} {first:.6g} -> {second:.6g}")
    if comparison.first_bits is None:
        return
    reasons = [difference for difference in differing if not difference.effect.startswith("nothing")]
    if reasons:
        print("what can have done that:")
        for difference in reasons:
            print(f"  {difference}")
    else:
        print("nothing that was recorded differs; no manifest holds, for example, in which order kernels of a GPU add")


def _keep(path: Path, run: Path, differing: "Sequence[Difference]", comparison: "Comparison") -> None:
    facts = {"of": str(run), "comparison": vars(comparison), "differences": [vars(found) for found in differing]}
    path.write_text(json.dumps(facts, indent=1) + "\n")
