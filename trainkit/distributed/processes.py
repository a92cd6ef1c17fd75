"""Processes of a job on this machine, started by torch's elastic agent, as `torchrun --standalone` does."""

import logging
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

from trainkit.errors import ClusterError, ConfigError, UsageError

_OF_A_JOB = ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")  # not LOCAL_RANK, which DeepSpeed leaves behind
_CALL, _LOOKING_S = "call", 1.0
_AGENT = "torch.distributed.elastic"


def launch(function: Callable[..., Any], *args: Any, processes: int | Literal["auto"] = "auto") -> list[Any]:
    """`function(*args)` in that many new processes of one job, for notebooks and scripts; their results, by rank.

    `Runtime()` in it finds the job as it does under torchrun. The function may be defined in a notebook or at a
    prompt. It, what it uses from there, its arguments and its results are copied (cloudpickle): make models, engines
    and data sets of a GPU inside of it. What a process prints appears where this one prints. All have ended when this
    returns or raises; an interrupt reaches them, as SIGINT.

    processes: `auto`: one for each GPU, one where there is none.
    Raises what the first rank to fail has raised, with a note that holds the rank and its traceback; ClusterError
    where a process ends without a result; UsageError in a process of a job; ConfigError.

    >>> import os
    >>> launch(lambda start: start + int(os.environ["RANK"]), 10, processes=2)
    [10, 11]
    """
    num = count(processes, "processes=")
    require_no_job(f"launch(processes={processes})")
    with tempfile.TemporaryDirectory(prefix="trainkit_") as name:
        directory = Path(name)
        _send(function, args, directory / _CALL)
        # Not by -m: modules beside a notebook are found by this process's path.
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
        how = _ended(failed.codes.get(silent[0], 0))
        raise ClusterError(f"rank {silent[0]} of {num} {how} before {_name(function)} returned")
    return [answer.value for answer in answers if isinstance(answer, _Returned)]


def run(arguments: Sequence[str], num: int) -> int:
    """Runs `python` with `arguments` in `num` processes of one job until all have ended; the exit code.

    Which is 0, or that of the process that failed first, 128 + n where signal n has ended it or this process.
    """
    with tempfile.TemporaryDirectory(prefix="trainkit_") as logs:
        failed = _run([sys.executable, "-u", *arguments], num, Path(logs))
    if failed.interrupted_by is not None:
        return 128 + failed.interrupted_by
    rank, code = next(iter(failed.codes.items()), (0, 0))
    if code >= 0:
        return code
    print(f"trainkit: error: rank {rank} {_ended(code)}", file=sys.stderr, flush=True)
    return 128 - code


def count(processes: int | str, name: str = "--processes=") -> int:
    """How many `processes` means; `name` is what an error calls it. Raises ConfigError."""
    if processes == "auto":
        import torch

        return max(1, torch.cuda.device_count())
    if isinstance(processes, bool) or not str(processes).isdecimal() or int(processes) < 1:
        raise ConfigError(f"{name}{processes}: allowed is auto, one for each GPU, or a number from 1 up")
    return int(processes)


def require_no_job(what: str) -> None:
    """Raises UsageError where this process is one of a job's already, so that each would start as many again."""
    found = [f"{name}={os.environ[name]}" for name in _OF_A_JOB if name in os.environ]
    if int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        found.append(f"SLURM_STEP_NUM_TASKS={os.environ['SLURM_STEP_NUM_TASKS']}")
    if found:
        raise UsageError(
            f"{what} starts processes by itself, and this is one of a job's already ({' '.join(found)}): leave it out "
            f"under torchrun and srun, or unset these variables"
        )


# -- the agent ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Failed:
    """codes: exit codes by rank, of the processes that failed: last, those that the agent has ended thereupon.
    interrupted_by: the signal to this process that has ended all."""

    codes: dict[int, int]
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
        with _restored():
            if num > 1:
                os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, which says so in three lines
            elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        codes = [(rank, failure.exitcode) for rank, failure in error.failures.items()]
        return _Failed(dict(sorted(codes, key=lambda entry: entry[1] == -signal.SIGTERM)))  # that was the agent
    except SignalException as error:
        return _Failed({}, int(error.sigval))
    return _Failed({})


@contextmanager
def _restored() -> Iterator[None]:
    """Keeps the agent's log to itself, and the environment and the signal handlers, which it sets, as they were."""
    environment, agent = dict(os.environ), logging.getLogger(_AGENT)
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()} if is_main else {}
    propagated, silence = agent.propagate, logging.NullHandler()
    agent.propagate = False
    agent.addHandler(silence)
    try:
        yield
    finally:
        agent.propagate = propagated
        agent.removeHandler(silence)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(environment)


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    why = " (the system does that where memory runs out)" if -code == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{why}"


# -- what a launched function is given and gives -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Returned:
    value: Any


@dataclass(frozen=True)
class _Raised:
    """error: None where it cannot be copied; text: its traceback; at: seconds of the clock."""

    error: BaseException | None
    text: str
    at: float


def work(directory: str) -> None:
    """What each launched process does: calls, and writes the answer into `directory`."""
    import cloudpickle

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    path = Path(directory)
    answer: _Returned | _Raised
    try:
        function, args = pickle.loads((path / _CALL).read_bytes())
        answer = _Returned(function(*args))
        content = _copy_of(answer, f"what {_name(function)} returned", "return numbers, text or tensors")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # the process that launched this one says so
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
    """Ends this process after its parent: a kernel that was restarted, say, would leave it on its GPU."""
    while os.getppid() == parent:
        time.sleep(_LOOKING_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _send(function: Callable[..., Any], args: tuple[Any, ...], path: Path) -> None:
    what = f"{_name(function)}, with its arguments and what it uses,"
    path.write_bytes(_copy_of((function, args), what, "make inside the function what cannot"))


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
