"""Location of a thread of this process: the line that it is at, and whether it waits there."""

import json
import linecache
import re
import struct
import sys
import sysconfig
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from trainkit.distributed.ranks import BESIDE

_TRAINKIT = f"{Path(__file__).parents[1]}/"
_TORCH = f"{Path(torch.__file__).parent}/"
_DISTRIBUTED = f"{_TORCH}distributed/"
_AUTOGRAD = (f"{_TORCH}autograd/", f"{_TORCH}_tensor.py", f"{_TRAINKIT}engine/backward.py")
_STANDARD = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib"))
_PACKAGES = tuple(f"{sysconfig.get_path(name)}/" for name in ("purelib", "platlib"))
# Frames outside of these started the run, and are no part of a step.
_OUTER = tuple(_TRAINKIT + name for name in ("trainer.py", "job.py", "cli/"))
# Modules of trainkit that call a collective or wait for the device.
_WAITING = tuple(
    _TRAINKIT + name
    for name in (
        "engine/",
        "distributed/ranks.py",
        "distributed/shard.py",
        "strategy/",
        "health/guard.py",
        "tracking/means.py",
    )
)
_TYPED = ("<stdin>", "<python-input", "<ipython-input")
_PROMPTS = {"bdb", "pdb", "cmd", "code", "_pyrepl", "IPython", "ipykernel", "debugpy", "pydevd", "_pydevd_bundle"}
_BLOCKING_CALL = re.compile(r"\.(wait|item|tolist|cpu|numpy|synchronize)\(")
_DUMPED = re.compile(r'  File "(.*)", line (\d+) in (.*)')
_IDENT_WIDTH = 2 + 2 * struct.calcsize("L")
_DUMPS = ("_dump_nccl_trace_json", "_dump_fr_trace_json")


@dataclass(frozen=True)
class Location:
    """Where a thread is.

    Args:
        line: innermost line outside of torch, trainkit and installed packages, as `train.py:42 (train_step)`.
        function: of torch or trainkit, which that line called; empty: none.
        waits: whether it waits for other ranks, or for a device that may.
        is_at_prompt: whether a debugger or a notebook waits for its user.
        trace: a hash that stays the same as long as the thread does not move.
    """

    line: str
    function: str
    waits: bool
    is_at_prompt: bool
    trace: int


def location_of(thread: int) -> Location:
    """Where a thread is now. Takes no lock that the thread may hold.

    Args:
        thread: its identifier, as `threading.get_ident` returns it.
    """
    innermost = sys._current_frames().get(thread)
    if innermost is None:  # at an interactive prompt, written in C
        return Location("nowhere", "", False, True, 0)
    frames = []
    frame: FrameType | None = innermost
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    stack = [_StackFrame(f.f_code.co_filename, f.f_lineno or 0, f.f_code.co_name) for f in frames]
    index = _index_of_line(stack)
    within, line = stack[:index], stack[index]
    roots = [str(f.f_globals.get("__name__")).partition(".")[0] for f in frames]
    trace = hash(tuple((id(f.f_code), f.f_lasti) for f in frames))
    return Location(str(line), _function(within), _waits(within, line), _is_at_prompt(stack, roots), trace)


def location_in(dump: str, thread: int) -> Location | None:
    """Where a thread was when its stack was dumped.

    Args:
        dump: as faulthandler writes it.
        thread: its identifier, as `threading.get_ident` returns it.

    Returns:
        None where the dump does not have the thread.
    """
    for part in re.split(r"\n(?=Thread|Current thread)", dump):
        if f"{thread:#0{_IDENT_WIDTH}x} " in part.partition("\n")[0]:
            stack = [_StackFrame(path, int(number), name) for path, number, name in _DUMPED.findall(part)]
            if stack:
                index = _index_of_line(stack)
                return Location(str(stack[index]), _function(stack[:index]), False, False, 0)
    return None


def all_stacks() -> str:
    """The stacks of all threads but the calling one, innermost line last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    )


def last_collective() -> str:
    """The oldest collective in torch's flight recorder that is not done, else the last one.

    It records by default, with gloo and with NCCL. Collectives of threads beside training are ignored.

    Returns:
        A description; empty where nothing is recorded.
    """
    for name in _DUMPS:
        dump = getattr(torch._C._distributed_c10d, name, None) if torch.distributed.is_available() else None
        entries = json.loads(dump()).get("entries", []) if dump is not None else []
        entries = [entry for entry in entries if BESIDE not in entry.get("process_group", [])]
        if entries:
            pending = [entry for entry in entries if not entry.get("retired")]
            return _collective(pending[0] if pending else entries[-1])
    return ""


def _collective(entry: dict[str, Any]) -> str:
    shapes = " and ".join(
        f"{dtype}{shape}"
        for dtype, shape in zip(entry.get("input_dtypes", []), entry.get("input_sizes", []), strict=False)
    )
    group = entry.get("process_group", ["?", "?"])
    return f"{entry.get('profiling_name')} of {shapes}, number {entry.get('collective_seq_id')} of group {group[-1]}"


@dataclass(frozen=True)
class _StackFrame:
    """A line of a stack: its file, its number and its function."""

    path: str
    number: int
    function: str

    def __str__(self) -> str:
        path = Path(self.path)
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return f"{path}:{self.number} ({self.function})"

    @property
    def is_user_code(self) -> bool:
        if self.path.startswith("<"):
            return self.path.startswith(_TYPED)
        return not self.path.startswith((_TORCH, _TRAINKIT, *_STANDARD, *_PACKAGES))

    @property
    def is_distributed(self) -> bool:
        return self.path.startswith(_DISTRIBUTED)

    @property
    def text(self) -> str:
        return linecache.getline(self.path, self.number)


def _index_of_line(stack: list[_StackFrame]) -> int:
    """The frame to name: the innermost of user code, else of an installed package, else of trainkit."""
    packages: list[int] = []
    own: list[int] = []
    for index, frame in enumerate(stack):
        if frame.path.startswith(_OUTER):
            break
        if frame.is_user_code:
            return index
        if frame.path.startswith(_TRAINKIT):
            own.append(index)
        elif frame.path.startswith(_PACKAGES) and not frame.path.startswith(_TORCH):
            packages.append(index)
    return (packages or own or [0])[0]


def _function(within: list[_StackFrame]) -> str:
    """The innermost function of torch.distributed, else of torch or trainkit."""
    known = [frame for frame in within if frame.path.startswith((_TORCH, _TRAINKIT))]
    for frame in known:
        if frame.is_distributed and frame.function != "wrapper":
            return frame.function
    if known and known[0].path.startswith(_AUTOGRAD):
        return "backward"
    return known[0].function if known else ""


def _waits(within: list[_StackFrame], line: _StackFrame) -> bool:
    if any(frame.is_distributed for frame in within):
        return True
    innermost = within[0] if within else line
    if innermost.path.startswith((*_AUTOGRAD, *_WAITING)):
        return True
    return not within and _BLOCKING_CALL.search(line.text) is not None


def _is_at_prompt(stack: list[_StackFrame], roots: list[str]) -> bool:
    for frame, root in zip(stack, roots, strict=True):
        if frame.is_user_code:
            return False
        if root in _PROMPTS:
            return True
    return False
