"""`trainkit launch --slurm` and `--kubernetes`: a job file of a configuration, written and submitted."""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli.output import say
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from trainkit.launcher.job import Job, Worker
    from trainkit.launcher.kubernetes import Kubernetes
    from trainkit.launcher.slurm import Slurm

EXAMPLES = """\
  trainkit launch --slurm --dry-run cluster.nodes=4 recipe=bert data.path=/shared/texts
  trainkit launch --slurm --array seeds.txt cluster.time=2:00:00 recipe=bert data.path=/shared/texts
  trainkit launch --slurm --array 8 --trials 100 recipe=bert optimizer.lr=log(1e-4,1e-2)
  trainkit launch --slurm --after 4711 cluster=slurm recipe=bert data.path=/shared/texts run_dir=runs/phase2
  trainkit launch --kubernetes --dry-run cluster.image=registry/trainkit:1 cluster.nodes=2 recipe=bert
"""


_OF_SSH: Mapping[str, Any] = {
    "hosts": None,
    "hostfile": None,
    "check": False,
    "at_least": None,
    "device": "auto",
    "directory": None,
    "env": [],
    "ssh": "ssh",
    "rdzv_endpoint": None,
    "max_restarts": 3,
    "shutdown_timeout": 30.0,
}
"""Options of `trainkit launch` that mean nothing to a scheduler, and their defaults."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `trainkit launch` that write job files."""
    group = parser.add_argument_group("job files", "cluster.KEY=VALUE changes what a job asks for; see conf/cluster/")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--slurm", action="store_true", help="write a batch script, and submit it with sbatch")
    which.add_argument("--kubernetes", action="store_true", help="write manifests, and create them with kubectl")
    group.add_argument(
        "--array",
        metavar="FILE|N",
        help="of Slurm: an element for each line of FILE, key=value in addition; or N workers of one sweep, of which "
        "the words are those of trainkit sweep; %%M after it: M at the same time",
    )
    group.add_argument("--trials", type=int, metavar="N", help="of the sweep of --array")
    group.add_argument("--to", metavar="DIR", help="the directory of the sweep of --array; default: runs/sweep_NAME")
    group.add_argument(
        "--after", action="append", default=[], metavar="JOBID", help="of Slurm: start when that job has succeeded"
    )


def is_asked_for(arguments: argparse.Namespace) -> bool:
    """Whether a job file is to be written.

    Raises:
        ConfigError: an option of job files is given without --slurm or --kubernetes.
    """
    if arguments.slurm or arguments.kubernetes:
        return True
    for name in ("array", "trials", "to", "after"):
        if getattr(arguments, name):
            raise ConfigError(f"--{name}: goes with --slurm")
    return False


def run(arguments: argparse.Namespace) -> int:
    """Writes a job file, and submits it; on stdout stands the job's number or name alone, or the file.

    Args:
        arguments: of `trainkit launch`, parsed.

    Returns:
        The exit code.

    Raises:
        TrainkitError: for what is wrong with the configuration, the cluster, or the scheduler.
    """
    from trainkit.config import cluster, of_cluster

    default = "slurm" if arguments.slurm else "kubernetes"
    for name, value in _OF_SSH.items():
        if getattr(arguments, name) != value:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option}: is of a launch over ssh; with --{default} type cluster.KEY=VALUE")
    own, words = of_cluster(arguments.overrides)
    made = cluster(own, default, arguments.config_dir)
    if type(made).__name__.lower() != default:
        names = [word for word in own if word.startswith("cluster=")]
        raise ConfigError(f"{names[-1]}: is no cluster of --{default}; its _target_ is {type(made).__qualname__}")
    return (_slurm if arguments.slurm else _kubernetes)(arguments, made, words)


def _slurm(arguments: argparse.Namespace, slurm: "Slurm", words: Sequence[str]) -> int:
    from trainkit.launcher.batch import script
    from trainkit.launcher.job import limited
    from trainkit.launcher.slurm import submit

    array, limit = limited(arguments.array) if arguments.array is not None else (None, None)
    work = _work(arguments, words, array)
    program = ["trainkit"] if slurm.container is not None else [arguments.python, "-m", "trainkit.cli"]
    text = script(slurm, work, program=program, limit=limit, after=arguments.after)
    if arguments.dry_run:
        print(text, end="")
        return 0
    number = submit(text)
    output = slurm.output.replace("%j", number if array is None else f"{number}_*")
    say(f"job {number} is in the queue: squeue --job {number}; its output: {output}")
    print(number)
    return 0


def _work(arguments: argparse.Namespace, words: Sequence[str], array: str | None) -> "Job | Worker":
    from trainkit.launcher.job import read_lines

    if array is not None and array.isdigit():
        return _sweep(arguments, words, int(array))
    for name in ("trials", "to"):
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name}={getattr(arguments, name)}: is of a sweep; give --array N, its workers")
    if array is None:
        return _job(arguments, words)
    try:
        lines = read_lines(Path(array).expanduser().read_text(), array)
    except OSError as error:
        raise ConfigError(f"--array={array}: must be a number of workers, or a file: {error.strerror}") from error
    return _job(arguments, words, lines)


def _job(arguments: argparse.Namespace, words: Sequence[str], lines: Sequence[tuple[str, ...]] = ()) -> "Job":
    from trainkit.config import check, compose
    from trainkit.launcher.job import Job, split_run_dir
    from trainkit.training.accumulation import checkable

    for line in lines or [()]:
        if any(word.startswith("run_dir=") for word in line):
            raise ConfigError(
                f"--array={arguments.array}: run_dir is that of all elements, each below it; leave it out"
            )
        check(checkable(compose([*words, *line], arguments.config_dir)))
    rest, run_dir = split_run_dir(words)
    # The date is that of now: a job that is started again must find its own directory.
    run_dir = time.strftime(run_dir) if run_dir is not None else None
    return Job(words=rest, run_dir=run_dir, lines=tuple(lines), config_dir=arguments.config_dir)


def _sweep(arguments: argparse.Namespace, words: Sequence[str], count: int) -> "Worker":
    from trainkit.launcher.job import Worker
    from trainkit.sweep import settings as given

    if count < 1:
        raise ConfigError(f"--array={arguments.array}: must be 1 worker or more")
    config_dir = Path(arguments.config_dir) if arguments.config_dir else None
    name, settings = given.of_words(words, {"trials": arguments.trials})
    given.require_usable(settings, config_dir)
    return Worker(
        words=tuple(words),
        directory=str(Path(arguments.to or f"runs/sweep_{name}").expanduser()),
        count=count,
        trials=arguments.trials,
        config_dir=arguments.config_dir,
    )


def _kubernetes(arguments: argparse.Namespace, kubernetes: "Kubernetes", words: Sequence[str]) -> int:
    from trainkit.launcher.kubectl import create, to_yaml
    from trainkit.launcher.manifests import manifests

    for name in ("array", "trials", "to", "after"):
        if getattr(arguments, name):
            raise ConfigError(f"--{name}: is of Slurm; on Kubernetes start a job for each element")
    made = manifests(kubernetes, _job(arguments, words))
    if arguments.dry_run:
        print(to_yaml(made), end="")
        return 0
    create(made)
    say(f"{kubernetes.kind} {kubernetes.name} is created: kubectl get pods -n {kubernetes.namespace}")
    print(kubernetes.name)
    return 0
