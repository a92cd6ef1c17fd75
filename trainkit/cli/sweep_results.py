"""What a sweep has found: `trainkit sweep show`, `best`, `export` and `report`."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.cli.output import console, say, writing
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from trainkit.sweep.study import Study

MOST = 20
"""Trials that are shown without --all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the actions to those of `trainkit sweep`."""
    group = parser.add_argument_group("options of actions")
    group.add_argument("--all", action="store_true", help=f"show: all trials; default: the best {MOST}, and failures")
    group.add_argument("--write", type=Path, metavar="FILE", help="best: write conf/experiment/NAME.yaml, a new file")
    group.add_argument("--output", type=Path, metavar="FILE", help="report: the page; default: report.html in DIR")


def run(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Runs an action.

    Args:
        arguments: of argparse.
        words: the action, the directory of the sweep, and the file of `export`.

    Raises:
        ConfigError: for what is missing, and as the action raises it.
    """
    action, *paths = words
    wanted = ["DIR", "FILE"] if action == "export" else ["DIR"]
    if len(paths) != len(wanted):
        example = f"trainkit sweep {action} runs/sweep_bert{' trials.csv' if action == 'export' else ''}"
        raise ConfigError(f"sweep {action} needs {' and '.join(wanted)}, such as {example}")
    actions: dict[str, Callable[[argparse.Namespace, list[Path]], None]] = {
        "show": _show,
        "best": _best,
        "export": _export,
        "report": _report,
    }
    actions[action](arguments, [Path(path).expanduser() for path in paths])


@contextmanager
def _opened(directory: Path) -> "Iterator[Study]":
    from trainkit.sweep.study import read

    study = read(directory)
    try:
        yield study
    finally:
        study.close()


def _config_dir(arguments: argparse.Namespace) -> Path | None:
    return Path(arguments.config_dir) if arguments.config_dir else None


def _show(arguments: argparse.Namespace, paths: list[Path]) -> None:
    from rich.table import Table

    from trainkit.sweep import table

    with _opened(paths[0]) as study:
        trials, metrics, keys = study.trials(), study.metrics, [*study.varied]
        best = table.front(trials, study.signs)
        out = console()
        out.print(f"{study.directory.name}: {table.counts(trials)} of {study.num_trials:,}; {table.times(trials)}")
        if best and len(metrics) == 1:
            steps = table.steps(study.run_dir(best[0].number))
            after = f" after {steps:,} steps" if steps is not None else ""
            out.print(f"best: {table.named(best[0], metrics)}{after}; {' '.join(study.overrides(best[0]))}")
        elif best:
            out.print(f"best: the Pareto front of {', '.join(metrics)} has {len(best)} of the trials, marked *")
        shown = [trial for trial in table.ordered(trials, study.signs) if trial.state != "failed"]
        num_left = 0 if arguments.all else max(0, len(shown) - MOST)
        numbers = {str(trial.number) for trial in best} if len(metrics) > 1 else set()
        grid = Table(*table.headings(metrics, keys), box=None, pad_edge=False)
        for row in table.rows(shown[: len(shown) - num_left], metrics, keys):
            grid.add_row(f"{row[0]}*" if row[0] in numbers else row[0], *row[1:])
        if grid.row_count:
            out.print(grid)
        if num_left:
            out.print(f"... and {num_left:,} more: --all shows them")
        for number, why in table.failures(trials):
            out.print(f"trial {number} failed: {why}")


def _best(arguments: argparse.Namespace, paths: list[Path]) -> None:
    from trainkit.sweep import best, table

    directory, number = best.number_of(paths[0])
    config_dir = _config_dir(arguments)
    with _opened(directory) as study:
        found = best.chosen(study, number)
        if arguments.write is not None and len(found) > 1:
            names = ", ".join(str(trial.number) for trial in found)
            raise ConfigError(
                f"--write: of several metrics the trials {names} are the best; give the directory of one, such as "
                f"{study.run_dir(found[0].number)}"
            )
        for trial in found:
            best.configuration(study, trial, config_dir)
            print(table.named(trial, study.metrics) if table.results(trial) else f"trial {trial.number}: {trial.state}")
            print(f"its run: {study.run_dir(trial.number)}")
            print(f"alone: {best.command(study, trial, config_dir)}")
            past = best.history(study, trial)
            if past is not None:
                say(past)
        if arguments.write is not None:
            line = best.write_experiment(study, found[0], arguments.write.expanduser(), config_dir)
            say(f"{arguments.write} has its configuration: {line}")


def _export(arguments: argparse.Namespace, paths: list[Path]) -> None:
    from trainkit.sweep import table

    directory, path = paths
    with _opened(directory) as study:
        num = table.export(study, path)
    say(f"{path} has {num:,} trials")


def _report(arguments: argparse.Namespace, paths: list[Path]) -> None:
    from trainkit.sweep.report import FILE_NAME, write_report

    output = arguments.output.expanduser() if arguments.output else paths[0] / FILE_NAME
    with _opened(paths[0]) as study, writing(output):
        write_report(study, output, _config_dir(arguments))
    say(f"the report is in {output}")
