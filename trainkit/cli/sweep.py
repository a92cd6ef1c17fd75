"""`trainkit sweep`: many trials of a configuration, searched by Optuna, in every slot of a machine."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli import sweep_results
from trainkit.cli.output import say
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from trainkit.sweep.driver import Driver, Looked
    from trainkit.sweep.settings import Settings
    from trainkit.sweep.study import Study

OPTIONS = ("trials", "metric", "sampler", "pruner", "interval", "seed", "processes")
ACTIONS = ("show", "best", "export", "report")
EXAMPLES = """\
examples:
  trainkit sweep recipe=bert optimizer.lr=log(1e-4,1e-2) recipe.mask_share=0.15,0.3 --trials 30
  trainkit sweep conf/sweep/bert.yaml --slots cpu:2 --to runs/sweep_bert
  trainkit sweep show runs/sweep_bert
  trainkit sweep best runs/sweep_bert --write conf/experiment/best.yaml
  trainkit sweep export runs/sweep_bert trials.csv
  trainkit sweep report runs/sweep_bert

values: 0.1,0.2 or choice(a,b); range(1,9); interval(0,0.5); log(1e-4,1e-2), drawn evenly by the logarithm
typed again, it goes on: what was running is continued from its checkpoints
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Adds `sweep` to `commands`, of argparse; returns its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "sweep",
        help="search the best configuration by many trials, in every slot of this machine",
        description="Train many configurations, chosen by Optuna from values of keys, as many at a time as this "
        "machine has slots. Each trial is a run like any other, below --to. Several machines that share --to work on "
        "one sweep if each types the same command.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="FILE | key=values",
        help="a file such as conf/sweep/bert.yaml, the configuration, and values of its keys; or one of the actions "
        f"{', '.join(ACTIONS)} and the directory of a sweep",
    )
    parser.add_argument("--trials", type=int, metavar="N", help="default: 20, or all of a grid; of pbt the members: 8")
    parser.add_argument("--metric", metavar="NAME", help="what is minimized; -NAME: maximized; default: the recipe's")
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help="tpe (default), random, grid, cmaes, nsga2 for two metrics, or pbt, which changes values meanwhile",
    )
    parser.add_argument("--pruner", metavar="NAME", help="none (default), median, halving or hyperband")
    parser.add_argument("--interval", type=int, metavar="N", help="evaluations of a generation of pbt; default: 1")
    parser.add_argument("--seed", type=int, metavar="N", help="of the sampler; default: 0")
    parser.add_argument("--processes", type=int, metavar="N", help="of each trial; default: 1")
    parser.add_argument(
        "--slots", default="auto", metavar="S", help="auto, cpu:N, gpu:N, gpu:0.5 or mig; default: auto"
    )
    parser.add_argument("--busy", action="store_true", help="also use GPUs and slices that other processes use")
    parser.add_argument("--to", type=Path, metavar="DIR", help="the directory of the sweep; default: runs/sweep_NAME")
    parser.add_argument("--storage", metavar="URL", help="a database for Optuna, such as postgresql+psycopg://host/db")
    sweep_results.add_arguments(parser)
    parser.set_defaults(run=_run, from_here=True)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    words = arguments.overrides
    if words and words[0] in ACTIONS:
        sweep_results.run(arguments, words)
    else:
        _search(arguments, words)


def _search(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    from trainkit.distributed.processes import require_no_job
    from trainkit.sweep import settings as given
    from trainkit.sweep.slots import slots
    from trainkit.sweep.worker_process import start_server, threads_of

    require_no_job("trainkit sweep")
    config_dir = Path(arguments.config_dir) if arguments.config_dir else None
    options = {name: getattr(arguments, name) for name in OPTIONS}
    name, settings = given.of_words(words, options)
    here = slots(arguments.slots, processes=settings.processes, visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
    start_server(threads_of(here[0], settings.processes))  # it imports what trials need while this process goes on
    from trainkit.cli.sweep_progress import Progress
    from trainkit.sweep import busy
    from trainkit.sweep.driver import Driver, present
    from trainkit.sweep.study import begin, require_free
    from trainkit.tracking.command import as_typed

    given.require_usable(settings, config_dir)
    if not arguments.busy:
        busy.require_free(here)
    directory = (arguments.to or Path("runs") / f"sweep_{name}").expanduser()
    require_free(directory, settings)
    for slot in here:
        say(f"slot {slot.name}: {slot.holds}")
    progress = Progress()
    driver = Driver(directory, settings, here, config_dir=config_dir, report=progress.report)
    try:
        with present(directory, driver.name):
            metrics = _metrics(settings, driver.look())
            study = begin(directory, settings, metrics=metrics, storage=arguments.storage, driver=driver.name)
            driver.left = lambda trial: progress.left(trial, study.metrics)
            try:
                with progress.shown():
                    driver.run(study, show=lambda: progress.show(driver))
            finally:
                _conclude(study, driver, config_dir)
                study.close()
    finally:
        driver.close()
    for action in ("show", "best", "report"):
        print(f"next: {as_typed(['trainkit', 'sweep', action, str(directory)])}")


def _conclude(study: "Study", driver: "Driver", config_dir: Path | None) -> None:
    """Prints what the sweep has found so far, and writes its page."""
    from trainkit.cli.sweep_progress import headline, line_of
    from trainkit.sweep import front
    from trainkit.sweep.report import FILE_NAME, write_report

    trials = study.trials()
    print(f"{headline(trials, study.num_trials, None)}; slots were busy {driver.busy_share():.0%} of the time")
    for best in front(trials, study.signs):
        print(f"best: {line_of(best, study.metrics)}\n  {study.run_dir(best.number)}")
    path = study.directory / FILE_NAME
    try:
        write_report(study, path, config_dir)
        print(f"report: {path}")
    except OSError as error:
        say(f"{path} cannot be written: {error.strerror or error}")


def _metrics(settings: "Settings", looked: "Looked") -> list[str]:
    """The metrics of a sweep, each after a `-` where higher is better."""
    given = settings.metric or looked.best_metric
    if given is None:
        raise ConfigError("metric: the recipe has no best_metric; give --metric NAME, such as one of its evaluations")
    best, found = looked.best_metric or "", []
    for name in given.split(","):
        name = name.strip()
        if name == best.removeprefix("-") or looked.better.get(name) == "higher":
            name = best if name == best.removeprefix("-") else f"-{name}"
        found.append(name)
    return found
