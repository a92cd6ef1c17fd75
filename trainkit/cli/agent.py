"""`trainkit agent`: the processes of this host, which train with those of other hosts and stop together."""

import argparse
import os
import re
from typing import TYPE_CHECKING, Any

from trainkit.distributed import slurm_step
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from trainkit.distributed.host import Host

EXAMPLES = """\
examples, the same command on every host; --node-rank 0 is the host of --rdzv-endpoint:
  trainkit agent --nnodes 4 --node-rank 0 --rdzv-endpoint node1:29400 --rdzv-id a-run recipe=bert run_dir=/shared/a-run
  trainkit agent --nnodes 3:4 --rdzv-endpoint node1:29400 --rdzv-id a-run recipe=bert run_dir=/shared/a-run
  srun --ntasks-per-node=1 trainkit agent recipe=bert         all of it from the step of Slurm
  trainkit agent recipe=bert                                  one host
each option is read from PET_NNODES, PET_NODE_RANK, ... where it is not given, as by torchrun
exit code, the same on all hosts: 0: done; 2: configuration or data are wrong, and would be again; 75: told to stop, and
has saved: start it again; 130: Ctrl-C; else it failed, or had saved nothing new
"""
_DEFAULT_RESTARTS, _DEFAULT_SHUTDOWN_S, _DEFAULT_PORT = 3, 30, 29400


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Adds `agent` to `commands`, of argparse; returns its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "agent",
        help="train in the processes of this host, together with other hosts",
        description="Run torchrun's agent for this host: start its processes, meet those of other hosts, restart all "
        "after a failure, and stop all after the same step where one host is told to by a signal.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="the configuration")
    _add(parser, "nnodes", "N|MIN:MAX", "hosts; MIN:MAX goes on with MIN when others are lost; default: 1, or Slurm's")
    _add(parser, "node-rank", "R", "the number of this host, from 0; default: found by its name, or Slurm's")
    _add(parser, "nproc-per-node", "N|gpu|auto", "processes; auto, the default: one for each GPU, or one without a GPU")
    _add(parser, "rdzv-endpoint", "HOST:PORT", "where the hosts meet: the first of them, and a free port there")
    _add(parser, "rdzv-id", "ID", "a name of the job, the same on all hosts; default: Slurm's number")
    _add(parser, "max-restarts", "N", f"restarts of all processes after a failure; default: {_DEFAULT_RESTARTS}")
    _add(
        parser,
        "shutdown-timeout",
        "S",
        f"seconds after a signal before processes are killed: for a step and a save; default: {_DEFAULT_SHUTDOWN_S}",
    )
    parser.set_defaults(run=_run, temporary=1, command=["-m", "trainkit.cli", "train"])
    return parser


def _add(parser: argparse.ArgumentParser, name: str, metavar: str, help: str) -> None:
    variable = f"PET_{name.upper().replace('-', '_')}"
    parser.add_argument(f"--{name}", default=os.environ.get(variable), metavar=metavar, help=help)


def _run(arguments: argparse.Namespace) -> int:
    host = host_of(arguments)
    from trainkit.distributed.host_agent import run

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _num_cores() // host.processes)))
    config_dir = ["--config-dir", arguments.config_dir] if arguments.config_dir else []
    return run(host, [*arguments.command, *config_dir, *arguments.overrides])


def host_of(arguments: argparse.Namespace) -> "Host":
    """What the options mean.

    Args:
        arguments: parsed; see `add_parser`.

    Raises:
        ConfigError: naming the option that is wrong.
    """
    # What costs no import of torch is checked first.
    min_nodes, max_nodes = _nodes(_given(arguments.nnodes) or slurm_step.num_nodes() or "1")
    restarts = _number("--max-restarts", _given(arguments.max_restarts) or _DEFAULT_RESTARTS)
    shutdown_s = _number("--shutdown-timeout", _given(arguments.shutdown_timeout) or _DEFAULT_SHUTDOWN_S)
    node_rank = _node_rank(arguments.node_rank, max_nodes)
    slurm_step.require_one_task_per_node()
    endpoint = _endpoint(arguments, is_several=max_nodes > 1)
    processes = _processes(_given(arguments.nproc_per_node) or "auto")
    from trainkit.distributed.host import ALONE, Host

    return Host(
        processes=processes,
        min_nodes=min_nodes,
        max_nodes=max_nodes,
        endpoint=endpoint or ALONE,
        is_first=None if node_rank is None or endpoint is None else node_rank == 0,
        job=_given(arguments.rdzv_id) or slurm_step.job() or ("trainkit" if max_nodes > 1 else ""),
        max_restarts=restarts,
        shutdown_timeout_s=shutdown_s,
    )


def _given(text: str | None) -> str | None:
    return text.strip() or None if text is not None else None


def _nodes(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    found = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise ConfigError(f"--nnodes={text}: must be a number of at least 1, or MIN:MAX such as 3:4")
    return found


def _number(option: str, text: str | int) -> int:
    if not str(text).isdecimal():
        raise ConfigError(f"{option}={text}: must be a number of at least 0")
    return int(text)


def _node_rank(text: str | None, max_nodes: int) -> int | None:
    text = _given(text) or slurm_step.node_rank()
    if text is None:
        return None
    if not text.isdecimal() or int(text) >= max_nodes:
        raise ConfigError(f"--node-rank={text}: must be a number from 0 to {max_nodes - 1}, with --nnodes={max_nodes}")
    return int(text)


def _endpoint(arguments: argparse.Namespace, *, is_several: bool) -> str | None:
    text = _given(arguments.rdzv_endpoint)
    if text is None and os.environ.get("PET_MASTER_ADDR"):  # Kubeflow sets these in its place
        text = f"{os.environ['PET_MASTER_ADDR']}:{os.environ.get('PET_MASTER_PORT') or _DEFAULT_PORT}"
    if text is None and is_several:
        text = slurm_step.endpoint()
    if text is None:
        if is_several:
            raise ConfigError(
                f"--nnodes={arguments.nnodes} needs --rdzv-endpoint HOST:PORT, the first host and a free port there, "
                f"the same on all hosts"
            )
        return None
    name, _, port = text.rpartition(":") if ":" in text else (text, "", str(_DEFAULT_PORT))
    if not name or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--rdzv-endpoint={text}: must be HOST:PORT, with a port from 1 to 65535")
    return f"{name}:{port}"


def _processes(text: str) -> int:
    if text not in ("auto", "gpu") and not (text.isdecimal() and int(text) > 0):
        raise ConfigError(f"--nproc-per-node={text}: must be auto, gpu, or a number of at least 1")
    if text.isdecimal():
        return int(text)
    import torch

    found = torch.cuda.device_count()
    if text == "gpu" and not found:
        raise ConfigError("--nproc-per-node=gpu: torch finds no GPU on this host; type a number, or auto")
    return max(1, found)


def _num_cores() -> int:
    """The cores that this process may use: those of its cgroup's set, or fewer where Slurm does not bind."""
    return min(len(os.sched_getaffinity(0)), slurm_step.num_cores() or 1 << 30)
