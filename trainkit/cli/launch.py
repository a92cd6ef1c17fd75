"""`trainkit launch`: a job on several machines, over ssh with checks of them before it starts, or by a job file."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli import launch_job
from trainkit.cli.output import say
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from trainkit.launcher.checks import Wanted
    from trainkit.launcher.hosts import Host

MOST_PARTNERS = 16  # of each rank within its host and on others
EXAMPLES = f"""\
examples:
  trainkit launch --hosts node1:8,node2:8 -- recipe=bert data.path=/shared/texts run_dir=/shared/runs/bert
  trainkit launch --hostfile hosts.txt --env MY_TOKEN -- recipe=bert data.path=/shared/texts
  trainkit launch --hosts node1,node2 --dry-run -- recipe=bert data.path=/shared/texts
  trainkit launch --hosts node1,node2 --check --at-least 0.7
  trainkit launch --check                                      the GPUs of this machine
{launch_job.EXAMPLES}
a hostfile has a host a line: `node1 slots=8`, or `node1:8`; without a number: a process for each GPU
exit code: 0: done, 2: a check, the configuration or the data are wrong, 75: saved, start it again, 130: Ctrl-C; else
that of the host that failed first
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Adds `launch` to `commands`, of argparse; returns its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "launch",
        help="train on several machines over ssh, by Slurm or on Kubernetes, or check machines",
        description="Train on several machines that ssh reaches without a password. Checks of all of them come first, "
        "then one agent starts on each. Ctrl-C and SIGTERM end every host after the same step, and save. Or write a "
        "job file for Slurm or Kubernetes from the same configuration, and submit it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="the configuration, after --")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--hosts", metavar="NAME:N,...", help="machines, and processes on each; default: one a GPU")
    where.add_argument("--hostfile", metavar="FILE", help="of DeepSpeed or Open MPI, in place of --hosts")
    parser.add_argument("--check", action="store_true", help="do not train: measure every rank and link")
    parser.add_argument(
        "--at-least",
        type=float,
        metavar="SHARE",
        help="with --check: exit with 1 where a rank or link is below this share of the median one or of its hardware; "
        "without: only where a result is wrong",
    )
    parser.add_argument("--device", default="auto", help="of --check: auto (default), cpu or cuda")
    parser.add_argument("--dry-run", action="store_true", help="print the checks and the commands, or the job file")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="on every host; default: this one's")
    parser.add_argument("--directory", metavar="DIR", help="working directory on every host; default: this one")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]", help="one more environment variable to carry"
    )
    parser.add_argument("--ssh", default="ssh", metavar="COMMAND", help="the ssh client with options: 'ssh -p 2222'")
    parser.add_argument(
        "--rdzv-endpoint", metavar="HOST[:PORT]", help="where the agents meet, on the first host; default: a free port"
    )
    parser.add_argument("--max-restarts", type=int, default=3, metavar="N", help="of the processes; default: 3")
    parser.add_argument(
        "--shutdown-timeout", type=float, default=30.0, metavar="S", help="seconds that a run has to save; default: 30"
    )
    launch_job.add_arguments(parser)
    parser.set_defaults(run=_run, from_here=True)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if launch_job.is_asked_for(arguments):
        return launch_job.run(arguments)
    _require(arguments)
    if "RANK" in os.environ and arguments.check:
        return _measure(arguments)
    if not (arguments.hosts or arguments.hostfile):
        if arguments.check:
            return _check_this_machine(arguments)
        raise ConfigError(
            "launch: --hosts or --hostfile is missing; type --hosts node1:8,node2:8, --slurm or --kubernetes, or train "
            "on this machine with `trainkit train --processes auto`"
        )
    from trainkit.launcher.launch import Launch

    launch = Launch(
        hosts=_hosts(arguments),
        arguments=_check_arguments(arguments) if arguments.check else _train_arguments(arguments),
        wanted=_wanted(arguments),
        python=arguments.python,
        ssh=shlex.split(arguments.ssh),
        max_restarts=0 if arguments.check else arguments.max_restarts,
        shutdown_timeout_s=arguments.shutdown_timeout,
    )
    if arguments.dry_run:
        for line in launch.plan():
            print(line)
        return 0
    return launch.run(say)


def _require(arguments: argparse.Namespace) -> None:
    if arguments.check and arguments.overrides:
        raise ConfigError(f"--check: takes no configuration, and was given {arguments.overrides[0]}; leave out one")
    if arguments.at_least is not None and not arguments.check:
        raise ConfigError("--at-least: goes with --check")
    if arguments.at_least is not None and not 0 < arguments.at_least <= 1:
        raise ConfigError(f"--at-least={arguments.at_least}: must be above 0, and at most 1")
    if arguments.max_restarts < 0:
        raise ConfigError(f"--max-restarts={arguments.max_restarts}: must be 0 or more")
    if not 0 < arguments.shutdown_timeout <= 3600:
        raise ConfigError(f"--shutdown-timeout={arguments.shutdown_timeout}: must be above 0, and at most 3600 seconds")
    if not shlex.split(arguments.ssh):
        raise ConfigError("--ssh: is empty; type --ssh 'ssh -p 2222', or leave it out")


def _hosts(arguments: argparse.Namespace) -> "list[Host]":
    from trainkit.launcher.hosts import parse_hosts, read_hostfile

    return parse_hosts(arguments.hosts) if arguments.hosts else read_hostfile(arguments.hostfile)


def _train_arguments(arguments: argparse.Namespace) -> list[str]:
    config_dir = ["--config-dir", arguments.config_dir] if arguments.config_dir else []
    return ["train", *config_dir, *arguments.overrides]


def _check_arguments(arguments: argparse.Namespace) -> list[str]:
    at_least = [] if arguments.at_least is None else ["--at-least", str(arguments.at_least)]
    return ["launch", "--check", "--device", arguments.device, *at_least]


def _wanted(arguments: argparse.Namespace) -> "Wanted":
    from trainkit.launcher.checks import Wanted
    from trainkit.launcher.environment import carried

    run_dir, device = (None, arguments.device) if arguments.check else _configured(arguments)
    address, port = _endpoint(arguments.rdzv_endpoint)
    return Wanted(
        directory=arguments.directory or str(Path.cwd()),
        environment=carried(os.environ, arguments.env),
        run_dir=run_dir,
        device=device,
        address=address,
        port=port,
    )


def _configured(arguments: argparse.Namespace) -> tuple[str | None, str]:
    """The run directory up to a date in it, and the device, of a configuration that is right."""
    from trainkit.config import check, compose
    from trainkit.training.accumulation import checkable

    config = compose(arguments.overrides, arguments.config_dir)
    check(checkable(config))
    run_dir = config["run_dir"]
    if run_dir is not None and "%" in run_dir:
        run_dir = run_dir.partition("%")[0].rpartition("/")[0] or "."
    return run_dir, config["device"]


def _endpoint(text: str | None) -> tuple[str, int]:
    if not text:
        return "", 0
    name, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    name = name if colon else text
    if not name or (colon and not (port.isdecimal() and 0 < int(port) < 65536)):
        raise ConfigError(f"--rdzv-endpoint={text}: must be HOST or HOST:PORT, with a port from 1 to 65535")
    return name.strip("[]"), int(port) if colon else 0


def _check_this_machine(arguments: argparse.Namespace) -> int:
    from trainkit.distributed.processes import count, run

    return run(["-m", "trainkit.cli", *_check_arguments(arguments)], count("auto"))


def _measure(arguments: argparse.Namespace) -> int:
    """Measures this rank and its links; rank 0 prints. Collective: every rank must call."""
    from trainkit.cli.machine import job
    from trainkit.cli.measured import patience
    from trainkit.cli.output import rank
    from trainkit.health.machine_check import check_machines

    with job(argparse.Namespace(device=arguments.device, topology=None)) as (topology, device), patience() as report:
        found = check_machines(device, num_phases=MOST_PARTNERS, topology=topology, say=report)
    if rank() == 0:
        for line in found.lines():
            print(line)
        findings = found.findings(arguments.at_least)
        for finding in findings:
            print(f"{'wrong' if finding.is_wrong else 'warning'}: {finding.text}")
        if not findings:
            print("no rank or link stands out, and all results are right")
        if (refusal := found.refusal(arguments.at_least)) is not None:
            say(f"error: {refusal}: a run should not start on these machines")
    return int(found.refusal(arguments.at_least) is not None)
