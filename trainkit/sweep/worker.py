"""Worker: a process that has imported everything, and forks one for each trial of its slot.

A fork starts in milliseconds and knows nothing of the trial before it: no state has to be reset. What a trial has
imported all workers of the machine import before their next one. The worker itself never touches a GPU.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from trainkit.config import check, resolve
from trainkit.errors import NonFiniteError, TrainkitError
from trainkit.manifest import code, environment
from trainkit.ops import build, library
from trainkit.sweep.reporter import Reporter, send
from trainkit.training.accumulation import checkable

LOG_FILE = "output.log"
_PR_SET_PDEATHSIG = 1
_LONGEST = 2000  # of an error
_tried = set[str]()
"""Names that the worker has imported, or cannot."""


def main(imported: Path, events: int, commands: int, answers: int, memory_share: float | None) -> None:
    """Runs trials until there are no more commands, or the driver is gone.

    Args:
        imported: a file with the names of the modules that trials of all workers have imported.
        events: a file descriptor for events.
        commands: a file descriptor with one line of JSON for each trial.
        answers: a file descriptor with a byte for each evaluation.
        memory_share: of the GPU that a trial may use; None: all.
    """
    # The driver ends it by closing the commands. What ends a terminal's processes is the driver's to pass on.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    _import(["trainkit.job", "trainkit.config.compose", "trainkit.checkpoint.sharded"])
    with os.fdopen(commands, "rb") as lines:
        environment.needed(["trainkit", *environment.imported()])  # read once, and not by each trial
        send(events, event="ready")
        for number, line in enumerate(lines):
            command = json.loads(line)
            if number == 0:
                with contextlib.suppress(Exception):  # the trial says what is wrong
                    _prepare(command["config"])
            _import(imported.read_text().split())
            _run(command, events, answers, commands, memory_share, imported)


def _prepare(config: Mapping[str, Any]) -> None:
    """Does once what each trial would do by itself."""
    checked = check(checkable(resolve(config)))
    if checked["ops"]["kernels"] == "fused" and library.find(build.plan()):  # a build is left to a trial that needs it
        library.load()


def _import(names: list[str]) -> None:
    """Imports what is missing; what cannot be imported by its name alone is left to the trials."""
    missing = [name for name in names if name not in sys.modules and name not in _tried]
    for name in missing:
        _tried.add(name)
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if missing:
        code.modules()  # read once, and not by each trial
        gc.collect()
        gc.freeze()  # a collection in a trial would copy every page of the worker


def _run(
    command: Mapping[str, Any], events: int, answers: int, commands: int, memory_share: float | None, imported: Path
) -> None:
    num = command.get("processes", 1)
    environment: dict[str, str] = {}
    if num > 1:
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(num)}
        environment |= {"LOCAL_WORLD_SIZE": str(num)}
    children, known = {}, {*sys.modules}
    for rank in range(num):
        child = os.fork()
        if child == 0:
            os.environ.update({**environment, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if num > 1 else {})})
            os.close(commands)
            _be_a_trial(command, rank, events, answers, memory_share, imported, known)
        children[child] = rank
    send(events, event="ended", code=_waited_for(children, commands))


def _waited_for(children: Mapping[int, int], commands: int) -> int:
    """The exit code of the trial: of the first process that failed."""
    first, left, poll = 0, dict(children), select.poll()
    handles = {os.pidfd_open(pid): pid for pid in children}
    for handle in handles:
        poll.register(handle, select.POLLIN)
    poll.register(commands, 0)  # the driver has closed its end: it is gone
    while left:
        for handle, _ in poll.poll():
            poll.unregister(handle)
            if handle == commands:
                _signal(left, signal.SIGTERM)
                continue
            pid = handles[handle]
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.close(handle)
            del left[pid]
            if code and not first:
                first = code
                if code != 128 + signal.SIGTERM:
                    _signal(left, signal.SIGKILL)  # they would wait for it
    return first


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def _be_a_trial(
    command: Mapping[str, Any],
    rank: int,
    events: int,
    answers: int,
    memory_share: float | None,
    imported: Path,
    known: set[str],
) -> NoReturn:
    code = 1
    try:
        _end_with_parent()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        _write_to(Path(command["log"]), rank)
        if rank == 0:
            send(events, event="started", pid=os.getpid())
        code = _train(command, rank, events, answers, memory_share)
        if rank == 0 and (new := [name for name in sys.modules if name not in known]):
            with imported.open("a") as file:
                file.write("".join(f"{name}\n" for name in new))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # not what the worker has registered to be done at exit


def _train(command: Mapping[str, Any], rank: int, events: int, answers: int, memory_share: float | None) -> int:
    from trainkit.job import new_recipe, train

    event: dict[str, Any]
    try:
        if memory_share is not None:
            import torch

            torch.cuda.set_per_process_memory_fraction(memory_share)
        if command.get("looks"):
            recipe = new_recipe(command["config"])
            recipe.runtime.close()
            better = {name: str(value) for name, value in recipe.better.items()}
            event = {"event": "looked", "best_metric": recipe.best_metric, "better": better}
        else:
            reporter = Reporter(events, answers)
            observer = reporter if rank == 0 else None
            metrics = train(command["config"], observer=observer, goes_on=lambda: reporter.goes_on)
            event = {"event": "done", "metrics": metrics}
        code = 0
    except SystemExit as error:  # Preempted
        event, code = {"event": "stopped"}, int(error.code or 0)
    except BaseException as error:
        if not isinstance(error, TrainkitError):
            traceback.print_exc()
        event, code = {"event": "failed", "error": _in_a_line(error), "kind": _kind(error)}, 2
    if rank == 0 or event["event"] == "failed":
        send(events, **event)
    return code


def _kind(error: BaseException) -> str:
    """`memory`, `nonfinite`: of the configuration; `user`: of an error in one line; `code`: any other."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "memory"
    if isinstance(error, NonFiniteError):
        return "nonfinite"
    return "user" if isinstance(error, TrainkitError) else "code"


def _in_a_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no reason was given"
    text = text if isinstance(error, TrainkitError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _write_to(path: Path, rank: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(
        path if rank == 0 else path.with_name(f"{path.stem}.{rank}{path.suffix}"),
        os.O_WRONLY | os.O_CREAT | os.O_APPEND,
        0o666,
    )
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _end_with_parent() -> None:
    """A worker that is killed takes its trial along, which another one may continue at once."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the driver is gone, and nobody is left to be told
        given = [int(text) for text in sys.argv[2:5]]
        main(Path(sys.argv[1]), given[0], given[1], given[2], float(sys.argv[5]) if len(sys.argv) > 5 else None)
