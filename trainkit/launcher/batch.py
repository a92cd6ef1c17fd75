"""Batch script: what sbatch runs on the first node of a job."""

import shlex
from collections.abc import Iterator, Sequence

from trainkit.errors import ConfigError
from trainkit.launcher.job import Job, Worker
from trainkit.launcher.slurm import Slurm

_HEAD = """\
#!/bin/bash
# Written by `trainkit launch --slurm`: one agent on each node, which starts a process for each GPU.
"""
_ALONE = "job=$SLURM_JOB_ID"
# The number of the last element to start is that of the array: to requeue that would requeue all of them.
_ELEMENT = "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
_FUNCTIONS = """\
# The agent of the first node, where this script runs too, tells all others when it is told to stop.
agent_pid=$PWD/.trainkit-agent.$SLURM_JOB_ID
rm -f "$agent_pid" # of a start that was killed
trap 'rm -f "$agent_pid"' EXIT
# shellcheck disable=SC2016
on_node='if [[ $SLURMD_NODENAME == "$1" ]]; then echo $$ >"$0"; fi; shift; exec "$@"'

checkpoints() {
    { find "$saves" -maxdepth 4 -regex '.*/checkpoints/step_[0-9]+' 2>/dev/null || true; } | sort NEWEST
}

is_told=
# shellcheck disable=SC2329
tell() {
    is_told=yes
    if [[ -s $agent_pid ]]; then
        kill -TERM "$(<"$agent_pid")" || true
    else
        scancel "$job.0" || true # it has not started yet, so there is nothing to save
    fi
}
trap tell USR1
trap 'echo "trainkit: SIGTERM: waiting for the run to save" >&2' TERM # which all processes of a preempted job get
"""
_END = """\
# In the background, because a shell handles signals only during `wait`, and each signal ends a `wait`.
while kill -0 "$step" 2>/dev/null; do
    wait "$step" || true
done
status=0
wait "$step" || status=$?

case $status in
0 | 2) exit "$status" ;; # done; an error that would repeat
75) ;;
*) if [[ -z $is_told ]]; then exit "$status"; fi ;;
esac
# A job that was cancelled, or that Slurm puts back into the queue itself after a preemption, is no longer running.
if [[ $(scontrol --oneliner show job "$job") != *" JobState=RUNNING "* ]]; then exit "$status"; fi
if [[ $(checkpoints) == "$before" ]]; then
    echo "trainkit: job $job has stopped without a new checkpoint: started again it would get no further. Give it" \\
        "more time (cluster.time), save more often (save_every), or look above for what it waits for" >&2
    exit 1
fi
"""
_REQUEUE = """\
echo "trainkit: job $job has saved: it goes back into the queue" >&2
scontrol requeue "$job"
exit "$status"
"""
_NO_REQUEUE = """\
echo "trainkit: job $job has saved; with the same run_dir it goes on (cluster.requeue=false)" >&2
exit "$status"
"""


def script(
    slurm: Slurm, work: Job | Worker, *, program: Sequence[str], limit: int | None = None, after: Sequence[str] = ()
) -> str:
    """Writes the batch script of a job.

    Args:
        slurm: what the job asks for.
        work: what it runs.
        program: the words of `trainkit` on a node, such as a Python and `-m trainkit.cli`.
        limit: elements of an array that run at the same time; None: all.
        after: numbers of jobs that must have succeeded before.

    Raises:
        ConfigError: the job cannot be an array, or have nodes of several kinds.
    """
    count = len(work.lines) if isinstance(work, Job) else work.count
    if count and slurm.others:
        raise ConfigError("cluster.others: a job array has nodes of one kind; leave it out")
    if isinstance(work, Worker) and slurm.nodes > 1:
        raise ConfigError(f"cluster.nodes={slurm.nodes}: each element of a sweep is a worker on one node; use 1")
    array = f"0-{count - 1}" + (f"%{limit}" if limit is not None else "") if count else None
    directives = "".join(f"#SBATCH {line}\n" for line in slurm.directives(array=array, after=after))
    variables = {"OMP_NUM_THREADS": str(max(1, slurm.cpus // slurm.processes)), **slurm.environment}
    parts = [
        _HEAD + directives,
        "set -euo pipefail\n",
        "".join(f"{line}\n" for line in slurm.setup),
        "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()),
        _of_run(slurm, work, program) if isinstance(work, Job) else _of_sweep(slurm, work, program),
        _END,
    ]
    return "\n".join(filter(None, parts)) + (_REQUEUE if slurm.requeue else _NO_REQUEUE)


def _of_run(slurm: Slurm, job: Job, program: Sequence[str]) -> str:
    """The run directory, the words of the configuration, and the step of agents."""
    lines = [_ELEMENT if job.lines else _ALONE, f"run_dir={_run_dir(slurm, job)}"]
    if job.lines:
        lines += ["case $SLURM_ARRAY_TASK_ID in", *_cases(job.lines), "esac"]
    own = ' "${words[@]}"' if job.lines else ""
    configuration = f'run_dir="$run_dir" {shlex.join(job.words)}'.rstrip() + own
    # An agent knows its step of Slurm, but not the other parts of a heterogeneous one.
    total = sum(component.nodes for component in slurm.components())
    meeting = [f"--nnodes={total}", '--rdzv-id="$SLURM_JOB_ID"', '--rdzv-endpoint="$endpoint"'] if slurm.others else []
    agents = [
        [
            "agent",
            *meeting,
            f"--nproc-per-node={component.processes}",
            f"--max-restarts={component.max_restarts}",
            f"--shutdown-timeout={component.signal_lead - 20}",
            *map(shlex.quote, job.options),
            configuration,
        ]
        for component in slurm.components()
    ]
    return "\n".join(
        [
            *lines,
            "saves=${run_dir/#\\~/$HOME}",
            *(['endpoint="$(hostname):$((20000 + SLURM_JOB_ID % 10000))"'] if slurm.others else []),
            "",
            _FUNCTIONS.replace("NEWEST", "| tail -n 1"),
            "before=$(checkpoints)",
            _step(slurm, agents, program),
        ]
    )


def _of_sweep(slurm: Slurm, worker: Worker, program: Sequence[str]) -> str:
    return "\n".join(
        [
            _ELEMENT,
            f"saves={shlex.quote(worker.directory)}\n",
            _FUNCTIONS.replace(" NEWEST", ""),
            "before=$(checkpoints)",
            _step(slurm, [[shlex.join(worker.arguments)]], program),
        ]
    )


def _run_dir(slurm: Slurm, job: Job) -> str:
    if not job.lines:
        return shlex.quote(job.run_dir) if job.run_dir else "runs/$SLURM_JOB_NAME-$SLURM_JOB_ID"
    parent = shlex.quote(job.run_dir) if job.run_dir else "runs/$SLURM_JOB_NAME-$SLURM_ARRAY_JOB_ID"
    return f"{parent}/$SLURM_ARRAY_TASK_ID"


def _cases(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    for number, words in enumerate(lines):
        yield f"{number}) words=({shlex.join(words)}) ;;"


def _step(slurm: Slurm, commands: Sequence[Sequence[str]], program: Sequence[str]) -> str:
    """The step of srun; of a heterogeneous job one with a part for each kind of nodes."""
    parts = []
    for number, (component, words) in enumerate(zip(slurm.components(), commands, strict=True)):
        options = [
            # One agent may end a moment before another that still writes: not the first one decides, but the slowest.
            *(["srun", "--kill-on-bad-exit=0", f"--wait={slurm.signal_lead}"] if number == 0 else []),
            *([f"--het-group={number}"] if slurm.others else []),
            f"--cpus-per-task={component.cpus}",
            *_of_pyxis(component),
        ]
        inner = f'{_of_apptainer(component)}bash -c "$on_node" "$agent_pid" "$SLURMD_NODENAME"'
        parts.append(" \\\n    ".join([" ".join(options), inner, shlex.join(program), *words]))
    return " \\\n    : ".join(parts) + " &\nstep=$!\n"


def _of_pyxis(slurm: Slurm) -> list[str]:
    if slurm.container is None or slurm.container_runtime != "pyxis":
        return []
    mounts = "".join(f",{mount}" for mount in slurm.mounts)
    return [
        f"--container-image={shlex.quote(slurm.container)}",
        f'--container-mounts="$PWD:$PWD"{shlex.quote(mounts) if mounts else ""}',
        '--container-workdir="$PWD"',
    ]


def _of_apptainer(slurm: Slurm) -> str:
    if slurm.container is None or slurm.container_runtime != "apptainer":
        return ""
    gpus = "--nv " if slurm.gpus_per_node else ""
    binds = "".join(f"--bind={shlex.quote(mount)} " for mount in slurm.mounts)
    return f'apptainer exec {gpus}--pwd="$PWD" --bind="$PWD" {binds}{shlex.quote(slurm.container)} '
