"""`trainkit seeds`: one configuration with several seeds, and what its metrics are on average."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainkit.cli.output import console, say
from trainkit.errors import ConfigError

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
        "and the standard deviation of each metric beside its baselines, and write them to run_dir/seeds.json. With "
        "the same run_dir, typed again, it resumes.",
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


def summarise(
    metrics: Sequence[Mapping[str, float]], baselines: Sequence[Mapping[str, Mapping[str, float]]]
) -> dict[str, dict[str, Any]]:
    """Computes what several runs measured.

    Args:
        metrics: of each run, by name.
        baselines: of each run, by metric and name.

    Returns:
        For each metric its `values`, `mean`, standard deviation `spread` (of a sample; None for one run), and the mean
        of each of its `baselines`.
    """
    found: dict[str, dict[str, Any]] = {}
    for metric in metrics[0]:
        values = [run[metric] for run in metrics]
        beside = [run.get(metric, {}) for run in baselines]
        found[metric] = {
            "values": values,
            "mean": statistics.fmean(values),
            "spread": statistics.stdev(values) if len(values) > 1 else None,
            "baselines": {
                name: statistics.fmean(run[name] for run in beside)
                for name in beside[0]
                if all(name in run for run in beside)
            },
        }
    return found


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
    summary = summarise([metrics for metrics, _ in found], [baselines for _, baselines in found])
    (directory / "seeds.json").write_text(json.dumps({"seeds": seeds, "metrics": summary}, indent=2) + "\n")
    _print(seeds, summary)
    return None


def _measured(run_dir: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The metrics and the baselines of the last evaluation of a run that has ended."""
    from trainkit.checkpoint import find, read_manifest

    values = read_manifest(find(run_dir))["values"]
    if not values.get("metrics"):
        raise ConfigError(f"{run_dir} has no evaluation at its last step: set evaluate_every")
    return values["metrics"], values.get("facts", {}).get("baselines", {})


def _print(seeds: Iterable[int], summary: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.table import Table

    table = Table("metric", "mean", "standard deviation", "by seed", "baselines", box=None)
    for metric, row in summary.items():
        spread = "" if row["spread"] is None else f"{row['spread']:.4g}"
        values = ", ".join(f"{value:.4g}" for value in row["values"])
        baselines = ", ".join(f"{name} {value:.4g}" for name, value in row["baselines"].items())
        table.add_row(metric, f"{row['mean']:.4g}", spread, values, baselines)
    console().print(f"seeds {', '.join(map(str, seeds))}")
    console().print(table)
