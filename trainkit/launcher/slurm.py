"""Slurm: what a job asks for, as options of sbatch, and its submission."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from trainkit.errors import ClusterError, ConfigError, nearest, require_at_least
from trainkit.launcher.job import CPUS_PER_PROCESS, processes

_ALONE = ("mem", "partition", "account", "qos", "constraint", "reservation")
_OF_OTHERS = ("nodes", "gpus_per_node", "processes_per_node", "cpus_per_task", "mem", "partition", "constraint")
_TIME = re.compile(r"(?:(?P<days>\d+)-(?P<of_day>\d+(?::\d+){0,2})|(?P<plain>\d+(?::\d+){0,2}))")
_SUBMIT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """A job of Slurm.

    Args:
        job_name: as squeue shows it.
        nodes: how many.
        gpus_per_node: GPUs of each; 0: none.
        processes_per_node: of each; `auto`: one for each GPU, or one.
        cpus_per_task: CPUs of each node, since there is one task on each; `auto`: 8 for each process.
        mem: memory of each node, such as `500G`; None: the partition's default.
        time: limit, as sbatch takes it: minutes, hours:minutes:seconds or days-hours.
        signal_lead: seconds before the limit at which the run is told to save and stop.
        requeue: whether the job goes back into the queue when it has saved, or lost a node.
        max_restarts: of the processes within a job.
        partition: of the cluster.
        account: that is charged.
        qos: quality of service.
        constraint: features of nodes.
        reservation: of nodes.
        exclusive: whether no other job runs on the nodes.
        output: file of the job's output; %j is the job's number, and that of the array and the element in an array.
        others: more nodes, of another kind, each with some of nodes, gpus_per_node, processes_per_node, cpus_per_task,
            mem, partition and constraint.
        container: image that the run is in; None: the environment of the submission.
        container_runtime: what runs it: `pyxis` (options of srun) or `apptainer`.
        mounts: what is seen in the container, as SOURCE:TARGET or SOURCE:TARGET:ro.
        environment: variables that are set before the run.
        setup: lines of bash before the run.
        options: further options of sbatch.

    Raises:
        ConfigError: for a value that sbatch or the run could not use.
    """

    job_name: str = "trainkit"
    nodes: int = 1
    gpus_per_node: int = 8
    processes_per_node: int | Literal["auto"] = "auto"
    cpus_per_task: int | Literal["auto"] = "auto"
    mem: str | None = None
    time: str = "24:00:00"
    signal_lead: int = 180
    requeue: bool = True
    max_restarts: int = 3
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclusive: bool = False
    output: str = "slurm-%j.out"
    others: list[dict[str, int | str]] = field(default_factory=list)
    container: str | None = None
    container_runtime: Literal["pyxis", "apptainer"] = "pyxis"
    mounts: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuses what would fail, or never end, after hours in the queue."""
        require_at_least(1, "cluster.", nodes=self.nodes)
        require_at_least(0, "cluster.", gpus_per_node=self.gpus_per_node, max_restarts=self.max_restarts)
        require_at_least(30, "cluster.", signal_lead=self.signal_lead)
        for name in ("processes_per_node", "cpus_per_task"):
            if (value := getattr(self, name)) != "auto":
                require_at_least(1, "cluster.", **{name: value})
        if (limit := seconds(self.time)) <= self.signal_lead:
            raise ConfigError(
                f"cluster.time={self.time}: is {limit} s, and the run is told to stop cluster.signal_lead="
                f"{self.signal_lead} s before its end: it must be longer"
            )
        if not re.fullmatch(r"[\w.-]+", self.job_name):
            raise ConfigError(f"cluster.job_name={self.job_name}: must be letters, digits, and . _ -")
        for variable in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", variable):
                raise ConfigError(f"cluster.environment.{variable}: is no name of a variable")
        for name in (*_ALONE, "output"):
            if (value := getattr(self, name)) is not None and re.search(r"\s", value):
                raise ConfigError(f"cluster.{name}={value!r}: must have no space")
        for option in self.options:
            if not option.startswith("-") or "\n" in option:
                raise ConfigError(f"cluster.options: {option!r} is no option of sbatch, such as --mail-type=END")
        if self.mounts and self.container is None:
            raise ConfigError(f"cluster.mounts={self.mounts}: needs cluster.container=IMAGE")
        for other in self.others:
            _require_other(other)

    @property
    def processes(self) -> int:
        """On each node."""
        return processes(self.processes_per_node, self.gpus_per_node)

    @property
    def cpus(self) -> int:
        """Of each node."""
        return CPUS_PER_PROCESS * self.processes if self.cpus_per_task == "auto" else int(self.cpus_per_task)

    def components(self) -> "list[Slurm]":
        """The parts of a heterogeneous job, of which each has nodes of one kind; one part where all are alike."""
        own = replace(self, others=[])
        changes: list[dict[str, Any]] = [dict(other) for other in self.others]
        return [own, *(replace(own, **change) for change in changes)]

    def directives(self, *, array: str | None = None, after: Sequence[str] = ()) -> list[str]:
        """The options of sbatch, as they stand after `#SBATCH` in a script.

        Args:
            array: elements of a job array, such as `0-7%2`; None: no array.
            after: numbers of jobs that must have succeeded before.

        Raises:
            ConfigError: for what is no number of a job.
        """
        for number in after:
            if not re.fullmatch(r"\d+(_\d+)?", number):
                raise ConfigError(f"--after={number}: must be the number of a job, such as 4711")
        first, *others = self.components()
        lines = [
            f"--job-name={self.job_name}",
            *first._of_nodes(),
            f"--time={self.time}",
            f"--output={self.output if array is None else self.output.replace('%j', '%A_%a')}",
            "--open-mode=append",
            "--requeue" if self.requeue else "--no-requeue",
            f"--signal=B:USR1@{self.signal_lead}",
            *([f"--array={array}"] if array is not None else []),
            *([f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []),
            *self.options,
        ]
        for other in others:
            lines += ["hetjob", *other._of_nodes()]
        return lines

    def _of_nodes(self) -> list[str]:
        alone = {name.replace("_", "-"): getattr(self, name) for name in _ALONE}
        return [
            f"--nodes={self.nodes}",
            "--ntasks-per-node=1",
            *([f"--gpus-per-node={self.gpus_per_node}"] if self.gpus_per_node else []),
            f"--cpus-per-task={self.cpus}",
            *(f"--{name}={value}" for name, value in alone.items() if value is not None),
            *(["--exclusive"] if self.exclusive else []),
        ]


def _require_other(other: Mapping[str, int | str]) -> None:
    for key, value in other.items():
        if key not in _OF_OTHERS:
            hint = nearest(key, _OF_OTHERS)
            raise ConfigError(f"cluster.others: {key}: must be one of {', '.join(_OF_OTHERS)}.{hint}")
        is_number = isinstance(value, int) or (value == "auto" and key in ("processes_per_node", "cpus_per_task"))
        if key not in _ALONE and not is_number:
            raise ConfigError(f"cluster.others: {key}={value}: must be a number")


def seconds(time: str) -> int:
    """The length of a time limit of Slurm.

    Raises:
        ConfigError: sbatch does not take it.

    Example:
        >>> seconds("90"), seconds("1:30"), seconds("24:00:00"), seconds("3-12")
        (5400, 90, 86400, 302400)
    """
    match = _TIME.fullmatch(time)
    if match is None:
        raise ConfigError(
            f"cluster.time={time}: must be minutes, minutes:seconds, hours:minutes:seconds, days-hours or "
            f"days-hours:minutes:seconds"
        )
    numbers = [int(part) for part in (match["of_day"] or match["plain"]).split(":")]
    if match["days"] is not None:
        hours, minutes, rest = (*numbers, 0, 0)[:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + rest
    if len(numbers) == 1:
        return numbers[0] * 60
    hours, minutes, rest = (0, *numbers)[-3:]
    return (hours * 60 + minutes) * 60 + rest


def submit(script: str) -> str:
    """Hands a script to sbatch.

    Args:
        script: the whole of it.

    Returns:
        The number of the job.

    Raises:
        ConfigError: there is no sbatch here, or it refuses the job.
        ClusterError: it does not answer.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"], input=script, capture_output=True, text=True, timeout=_SUBMIT_S, check=False
        )
    except FileNotFoundError as error:
        raise ConfigError("--slurm: there is no sbatch on this host; --dry-run prints the script") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"sbatch has not answered within {_SUBMIT_S:.0f} s") from error
    if done.returncode:
        raise ConfigError(f"sbatch refuses the job: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout.strip().partition(";")[0]
