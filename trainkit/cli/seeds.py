"""`trainkit seeds`: one configuration with several seeds, and what its metrics are on average."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli.output import console, say
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from trainkit.evaluation import Assessment

EXAMPLES = """\
examples:
  trainkit seeds 5 recipe=bert_finetune data.path=reviews.csv weights=runs/bert run_dir=runs/reviews
  trainkit seeds 3,4 --processes 2 recipe=bert data.path=~/texts run_dir=runs/two
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Adds `seeds` to `commands`, of argparse; returns its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "seeds",
        help="train with several seeds, and print mean and spread",
        description="Train a configuration once for each seed, one after the other, in run_dir/seed_N. Print the mean "
        "and the standard deviation of each metric beside its interval over held-out samples and its baselines, and "
        "whether the mean beats these by more than the seeds differ; write them to run_dir/seeds.json. With the same "
        "run_dir, typed again, it resumes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("seeds", metavar="SEEDS", help="a number of seeds, from 0 on, or seeds with commas: 3,4")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="the configuration, as of trainkit train")
    parser.add_argument("--processes", default="1", metavar="N", help="processes of each run, as of trainkit train")
    parser.set_defaults(run=_run)
    return parser


def seeds_of(text: str) -> list[int]:
    """Returns the seeds that were asked for.

    Raises:
        ConfigError: for text that means no seeds.

    Example:
        >>> seeds_of("3"), seeds_of("7,5")
        ([0, 1, 2], [7, 5])
    """
    try:
        numbers = [int(part) for part in text.split(",") if part]
    except ValueError:
        numbers = []
    seeds = list(range(numbers[0])) if len(numbers) == 1 and "," not in text else numbers
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"SEEDS={text!r}: must be a number of seeds, such as 5, or seeds with commas, such as 3,4")
    return seeds


def summarise(runs: "Sequence[Assessment]") -> dict[str, dict[str, Any]]:
    """Computes what several runs measured.

    Args:
        runs: the last evaluation of each.

    Returns:
        For each metric its `values`, `mean`, standard deviation `spread` (of a sample; None for one run), the 95 %
        t interval of the mean over seeds `over_seeds` (None for one run), the `intervals` of the runs over held-out
        samples (None where a run has none), the mean of each of its `baselines`, and `against` these, by name, whether
        the mean is `better`, `worse` or `alike` by more than the seeds differ (None: one run, or not known which is).
    """
    from trainkit.evaluation import OverSeeds

    found: dict[str, dict[str, Any]] = {}
    for metric in runs[0].metrics:
        values = OverSeeds([run.metrics[metric] for run in runs])
        beside = _baselines(runs, metric)
        better, ends = runs[0].better.get(metric), values.interval()
        compared = [name for name in beside if name not in runs[0].ideals]
        found[metric] = {
            "values": [*values.values],
            "mean": values.mean,
            "spread": values.spread,
            "over_seeds": None if ends is None else list(ends),
            "intervals": [list(run.intervals[metric].bounds) if metric in run.intervals else None for run in runs],
            "baselines": {name: statistics.fmean(each) for name, each in beside.items()},
            "against": {name: values.against(beside[name], better) for name in compared} if better else {},
        }
    return found


def statements(runs: "Sequence[Assessment]") -> Iterator[str]:
    """Yields for each metric and each baseline that it is to beat whether the mean over the runs does."""
    from trainkit.evaluation import OverSeeds

    for metric in runs[0].metrics:
        values, better = OverSeeds([run.metrics[metric] for run in runs]), runs[0].better.get(metric)
        for name, each in _baselines(runs, metric).items():
            if better is not None and name not in runs[0].ideals:
                yield values.statement(metric, name, each, better)


def _baselines(runs: "Sequence[Assessment]", metric: str) -> dict[str, list[float]]:
    """By name, the value in each run; of those that every run has."""
    beside = [run.baselines.get(metric, {}) for run in runs]
    return {name: [of[name] for of in beside] for name in beside[0] if all(name in of for of in beside)}


def _run(arguments: argparse.Namespace) -> int | None:
    seeds = seeds_of(arguments.seeds)
    keys = {override.partition("=")[0]: override.partition("=")[2] for override in arguments.overrides}
    if "seed" in keys:
        raise ConfigError(f"seed={keys['seed']} is one seed: leave it out, and give SEEDS")
    directory = Path(time.strftime(keys.get("run_dir") or "runs/seeds_%Y-%m-%d_%H-%M-%S")).expanduser()
    given = [override for override in arguments.overrides if not override.startswith("run_dir=")]
    config_dir = ["--config-dir", arguments.config_dir] if arguments.config_dir else []
    command = [sys.executable, "-m", "trainkit.cli", "train", "--processes", arguments.processes, *config_dir, *given]
    found = []
    for seed in seeds:
        run_dir = directory / f"seed_{seed}"
        say(f"seed {seed}: {run_dir}")
        code = subprocess.run([*command, f"seed={seed}", f"run_dir={run_dir}"]).returncode
        if code:
            return code
        found.append(_measured(run_dir))
    summary = summarise(found)
    (directory / "seeds.json").write_text(json.dumps({"seeds": seeds, "metrics": summary}, indent=2) + "\n")
    _print(seeds, summary)
    for line in statements(found):
        console().print(line)
    return None


def _measured(run_dir: Path) -> "Assessment":
    """The last evaluation of a run that has ended."""
    from trainkit.checkpoint import find, read_manifest
    from trainkit.evaluation import Assessment

    values = read_manifest(find(run_dir))["values"]
    if not values.get("metrics"):
        raise ConfigError(f"{run_dir} has no evaluation at its last step: set evaluate_every")
    older = {"baselines": values.get("facts", {}).get("baselines", {})}
    return Assessment.of(values["metrics"], values.get("assessment") or older)


def _print(seeds: Iterable[int], summary: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.table import Table

    table = Table("metric", "mean", "standard deviation", "by seed [95 % over samples]", "baselines", box=None)
    for metric, row in summary.items():
        spread = "" if row["spread"] is None else f"{row['spread']:.4g}"
        values = ", ".join(
            f"{value:.4g}" + ("" if ends is None else f" [{ends[0]:.4g}, {ends[1]:.4g}]")
            for value, ends in zip(row["values"], row["intervals"], strict=True)
        )
        baselines = ", ".join(f"{name} {value:.4g}" for name, value in row["baselines"].items())
        table.add_row(metric, f"{row['mean']:.4g}", spread, values, baselines)
    console().print(f"seeds {', '.join(map(str, seeds))}")
    console().print(table)
