"""Processes of a job on this machine, started by torch's elastic agent, as `torchrun --standalone` does."""

import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainkit.distributed import launchers
from trainkit.distributed.elastic_log import silenced
from trainkit.errors import ClusterError, ConfigError, UsageError

_OF_A_JOB = ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")  # not LOCAL_RANK, which DeepSpeed leaves behind
_CALL, _LOOKING_S = "call", 1.0


def launch(function: Callable[..., Any], *args: Any, processes: int | Literal["auto"] = "auto") -> list[Any]:
    """Calls `function(*args)` in several processes of one job on this machine, from a notebook or a script.

    `Runtime()` in it finds the job as it does under torchrun. The function may be defined in a notebook or at a
    prompt. The function, the globals that it uses, its arguments and its results are copied with cloudpickle: create
    models, engines and data sets on a GPU inside the function. The output of all processes appears in that of this one.
    All processes have ended when this returns or raises; an interrupt reaches them as SIGINT.

    Args:
        function: called once in each process.
        *args: its arguments.
        processes: how many; `auto`: one for each GPU, or one without a GPU.

    Returns:
        The result of each rank, in their order.

    Raises:
        Exception: what the first rank to fail raised, with a note of its rank and traceback.
        ClusterError: where a process ends without a result.
        UsageError: in a process that already belongs to a job, or for something that cannot be copied.
        ConfigError: for `processes` that is neither `auto` nor a number of at least 1.

    Example:
        >>> import os
        >>> launch(lambda start: start + int(os.environ["RANK"]), 10, processes=2)
        [10, 11]
    """
    num = count(processes, "processes=")
    require_no_job(f"launch(processes={processes})")
    with tempfile.TemporaryDirectory(prefix="trainkit_") as name:
        directory = Path(name)
        _send(function, args, directory / _CALL)
        # Not -m: modules beside a notebook are found through the path of this process.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from trainkit.distributed.processes import work; work({name!r})"
        )
        failed = _run([sys.executable, "-u", "-c", code], num, directory)
        answers = [_read(directory / str(rank)) for rank in range(num)]
    if failed.interrupted_by is not None:
        if failed.interrupted_by == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + failed.interrupted_by)
    raised = [(answer.at, rank) for rank, answer in enumerate(answers) if isinstance(answer, _Raised)]
    if raised:
        _raise(answers, min(raised)[1])
    silent = [rank for rank in (*failed.codes, *range(num)) if answers[rank] is None]
    if silent:
        from trainkit.distributed.host_agent import how_ended

        how = how_ended(failed.codes.get(silent[0], 0))
        raise ClusterError(f"rank {silent[0]} of {num} {how} before {_name(function)} returned")
    return [answer.value for answer in answers if isinstance(answer, _Returned)]


def run(arguments: Sequence[str], num: int) -> int:
    """Runs `python` with `arguments` in several processes of one job, and waits for them.

    Args:
        arguments: of each `python` process.
        num: processes.

    Returns:
        The exit code, as `trainkit.distributed.host_agent.run` returns it.

    Raises:
        ClusterError: where they cannot be started.
    """
    from trainkit.distributed.host import Host
    from trainkit.distributed.host_agent import run as run_host

    with _restored():
        if num > 1:
            os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, which prints three lines about it
        return run_host(Host(processes=num), arguments)


def count(processes: int | str, name: str = "--processes=") -> int:
    """The number of processes that an option means.

    Args:
        processes: a number, or `auto`: one for each GPU, or one without a GPU.
        name: of the option, for the message of an error.

    Raises:
        ConfigError: for anything else.
    """
    if processes == "auto":
        import torch

        return max(1, torch.cuda.device_count())
    if isinstance(processes, bool) or not str(processes).isdecimal() or int(processes) < 1:
        raise ConfigError(f"{name}{processes}: must be auto (one for each GPU) or a number of at least 1")
    return int(processes)


def require_no_job(what: str) -> None:
    """Checks that this process does not belong to a job already, each of whose processes would start several more.

    Args:
        what: the call or option, for the message of an error.

    Raises:
        UsageError: where it does.
    """
    found = [f"{name}={os.environ[name]}" for name in _OF_A_JOB if name in os.environ]
    if (launcher := launchers.launcher_of(os.environ)) is not None:
        found.append(f"{launcher.size}={os.environ[launcher.size]}")
    if found:
        raise UsageError(
            f"{what} starts processes, and this process already belongs to a job ({' '.join(found)}): leave it out "
            f"under torchrun and srun, or unset these variables"
        )


# -- the agent ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Failed:
    """The exit codes of the failed processes by rank, and the signal that interrupted this process."""

    codes: dict[int, int]  # the first to fail first; those that the agent then ended last
    interrupted_by: int | None = None


def _run(command: Sequence[str], num: int, logs: Path) -> _Failed:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
    )
    try:
        with _restored(), silenced():
            if num > 1:
                os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, which prints three lines about it
            elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        codes = [(rank, failure.exitcode) for rank, failure in error.failures.items()]
        return _Failed(dict(sorted(codes, key=lambda entry: entry[1] == -signal.SIGTERM)))  # sent by the agent
    except SignalException as error:
        return _Failed({}, int(error.sigval))
    return _Failed({})


@contextmanager
def _restored() -> Iterator[None]:
    """Restores the environment and signal handlers that torch's agent changes."""
    environment = dict(os.environ)
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()} if is_main else {}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(environment)


# -- arguments and results of a launched function ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Returned:
    value: Any


@dataclass(frozen=True)
class _Raised:
    error: BaseException | None  # None where it cannot be copied
    text: str  # its traceback
    at: float  # seconds since the epoch


def work(directory: str) -> None:
    """The main function of a launched process: calls the function in `directory`, and writes its result there."""
    import cloudpickle

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    path = Path(directory)
    answer: _Returned | _Raised
    try:
        function, args = pickle.loads((path / _CALL).read_bytes())
        answer = _Returned(function(*args))
        content = _copy_of(answer, f"the result of {_name(function)}", "return numbers, text or tensors")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # the launching process reports it
    except Exception as error:
        answer = _Raised(error, traceback.format_exc(), time.time())
        try:
            content = cloudpickle.dumps(answer)
            pickle.loads(content)
        except Exception:
            content = cloudpickle.dumps(_Raised(None, answer.text, answer.at))
    (path / os.environ["RANK"]).write_bytes(content)
    if isinstance(answer, _Raised):
        sys.exit(1)


def _end_with(parent: int) -> None:
    """Ends this process after its parent; otherwise it would keep its GPU when a notebook's kernel restarts."""
    while os.getppid() == parent:
        time.sleep(_LOOKING_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _send(function: Callable[..., Any], args: tuple[Any, ...], path: Path) -> None:
    what = f"{_name(function)}, with its arguments and the globals that it uses,"
    path.write_bytes(_copy_of((function, args), what, "create such objects inside the function"))


def _copy_of(value: Any, what: str, advice: str) -> bytes:
    import cloudpickle

    try:
        content: bytes = cloudpickle.dumps(value)
        return content
    except Exception as error:
        raise UsageError(f"{what} cannot be copied to another process ({error}): {advice}") from error


def _read(path: Path) -> _Returned | _Raised | None:
    return pickle.loads(path.read_bytes()) if path.is_file() else None


def _raise(answers: Sequence[Any], rank: int) -> None:
    answer = answers[rank]
    where = f"rank {rank} of {len(answers)}"
    if answer.error is None:
        raise ClusterError(f"{where} raised:\n{answer.text}")
    answer.error.add_note(f"raised by {where}:\n{answer.text}")
    raise answer.error


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)
