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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import torch

from trainkit.config import check, resolve
from trainkit.errors import NonFiniteError, TrainkitError
from trainkit.job import new_recipe, train
from trainkit.manifest import code
from trainkit.ops import build, library
from trainkit.sweep.reporter import Reporter, send
from trainkit.training.accumulation import checkable

LOG_FILE = "output.log"
_PR_SET_PDEATHSIG = 1
_LONGEST = 2000  # of an error
_tried = set[str]()
"""Names that the worker has imported, or cannot."""


@dataclass(frozen=True)
class Ends:
    """What a worker and its trials share.

    Args:
        events: a file descriptor.
        answers: a file descriptor.
        commands: a file descriptor.
        imported: as of `main`.
        memory_share: as of `main`.
    """

    events: int
    answers: int
    commands: int
    imported: Path
    memory_share: float | None


def main(
    imported: Path,
    events: Connection,
    commands: Connection,
    answers: Connection,
    *,
    environment: Mapping[str, str],
    directory: Path,
    threads: int,
    devices: str,
    memory_share: float | None,
) -> None:
    """Runs trials until there are no more commands, or the driver is gone.

    Args:
        imported: a file with the names of the modules that trials of all workers have imported.
        events: to be written to, a line of JSON for each.
        commands: one line of JSON for each.
        answers: a byte for each evaluation.
        environment: of the driver.
        directory: in which it works.
        threads: of a process of a trial.
        devices: the GPUs of the slot, as CUDA_VISIBLE_DEVICES names them.
        memory_share: of the GPU that a trial may use; None: all.
    """
    os.setsid()  # Ctrl-C is for the driver
    # The driver ends it by closing the commands. What ends a terminal's processes is the driver's to pass on.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    os.environ.update(OMP_NUM_THREADS=str(threads), CUDA_VISIBLE_DEVICES=devices)
    if torch.get_num_threads() != threads:  # the server was started for another slot
        torch.set_num_threads(threads)
    with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(commands.fileno()), "rb") as lines:
        commands.close()
        ends = Ends(events.fileno(), answers.fileno(), lines.fileno(), imported, memory_share)
        send(ends.events, event="ready")
        for number, line in enumerate(lines):
            command = json.loads(line)
            if number == 0:
                with contextlib.suppress(Exception):  # the trial says what is wrong
                    _prepare(command["config"])
            _import(imported.read_text().split())
            if not command.get("prepares"):
                _run(command, ends)


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


def _run(command: Mapping[str, Any], ends: Ends) -> None:
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
            os.close(ends.commands)
            _be_a_trial(command, rank, ends, known)
        children[child] = rank
    send(ends.events, event="ended", code=_waited_for(children, ends.commands))


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
                if code not in (os.EX_TEMPFAIL, 128 + signal.SIGTERM):  # it was stopped, and so are they
                    _signal(left, signal.SIGKILL)  # they would wait for it
    return first


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def _be_a_trial(command: Mapping[str, Any], rank: int, ends: Ends, known: set[str]) -> NoReturn:
    code = 1
    try:
        _end_with_parent()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        _write_to(Path(command["log"]), rank)
        if rank == 0:
            send(ends.events, event="started", pid=os.getpid())
        code = _train(command, rank, ends)
        if rank == 0 and (new := [name for name in sys.modules if name not in known]):
            with ends.imported.open("a") as file:
                file.write("".join(f"{name}\n" for name in new))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # not what the worker has registered to be done at exit


def _train(command: Mapping[str, Any], rank: int, ends: Ends) -> int:
    event: dict[str, Any]
    try:
        if ends.memory_share is not None:
            torch.cuda.set_per_process_memory_fraction(ends.memory_share)
        if command.get("looks"):
            recipe = new_recipe(command["config"])
            recipe.runtime.close()
            better = {name: str(value) for name, value in recipe.better.items()}
            event = {"event": "looked", "best_metric": recipe.best_metric, "better": better}
        else:
            reporter = Reporter(ends.events, ends.answers)
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
        send(ends.events, **event)
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
