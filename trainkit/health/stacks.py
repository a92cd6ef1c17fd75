"""Where a thread of this process stands, and what it waits for there."""

import json
import re
import sys
import sysconfig
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

_TRAINKIT = f"{Path(__file__).parents[1]}/"
_TORCH = f"{Path(torch.__file__).parent}/"
_DISTRIBUTED, _AUTOGRAD = f"{_TORCH}distributed/", (f"{_TORCH}autograd/", f"{_TORCH}_tensor.py")
_STANDARD = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib"))
_PACKAGES = tuple(f"{sysconfig.get_path(name)}/" for name in ("purelib", "platlib"))
# Above these is what started the run, not what a step does.
_OUTER = tuple(_TRAINKIT + name for name in ("trainer.py", "job.py", "cli/"))
# Of ours, those that call a collective or wait for the device.
_MEETING = tuple(_TRAINKIT + name for name in ("engine.py", "backend.py", "ranks.py", "shard.py", "strategy/"))
_TYPED = ("<stdin>", "<python-input", "<ipython-input")
_PROMPTS = {"bdb", "pdb", "cmd", "code", "_pyrepl", "IPython", "ipykernel", "debugpy", "pydevd", "_pydevd_bundle"}
_BLOCKING_CALL = re.compile(r"\.(wait|item|tolist|cpu|numpy|synchronize)\(")
_DUMPS = ("_dump_nccl_trace_json", "_dump_fr_trace_json")


@dataclass(frozen=True)
class Stand:
    """Where a thread stands.

    line: innermost line of neither torch, trainkit nor an installed package, as `train.py:42 (train_step)`.
    function: of torch or trainkit, in which it stands; empty: none.
    waits: for other ranks, or for a device that may.  is_at_prompt: a debugger or a notebook waits for its user.
    trace: the same as long as the thread has not moved.
    """

    line: str
    function: str
    waits: bool
    is_at_prompt: bool
    trace: int


def stand_of(thread: int) -> Stand:
    """The stand of the thread with this identifier. Takes no lock that the thread may hold."""
    innermost = sys._current_frames().get(thread)
    if innermost is None:  # at an interactive prompt, written in C
        return Stand("nowhere", "", False, True, 0)
    frames = []
    frame: FrameType | None = innermost
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    line = _line_of(frames)
    within = frames[: frames.index(line)]
    trace = hash(tuple((id(f.f_code), f.f_lasti) for f in frames))
    return Stand(_shown(line), _function(within), _waits(within, line), _is_at_prompt(frames), trace)


def all_stacks() -> str:
    """The stacks of all threads but the one that calls, innermost line last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    )


def last_collective() -> str:
    """What torch's flight recorder has on the oldest collective that is not done, or on the last one; empty: nothing.

    It records by default, with gloo and with NCCL.
    """
    for name in _DUMPS:
        dump = getattr(torch._C._distributed_c10d, name, None) if torch.distributed.is_available() else None
        entries = json.loads(dump()).get("entries", []) if dump is not None else []
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


def _line_of(frames: list[FrameType]) -> FrameType:
    """The innermost frame that is a user's, else an installed package's, else trainkit's own."""
    packages: list[FrameType] = []
    own: list[FrameType] = []
    for frame in frames:
        path = frame.f_code.co_filename
        if path.startswith(_OUTER):
            break
        if _is_users(path):
            return frame
        if path.startswith(_TRAINKIT):
            own.append(frame)
        elif path.startswith(_PACKAGES) and not path.startswith(_TORCH):
            packages.append(frame)
    return (packages or own or frames)[0]


def _is_users(path: str) -> bool:
    if path.startswith("<"):
        return path.startswith(_TYPED)
    return not path.startswith((_TORCH, _TRAINKIT, *_STANDARD, *_PACKAGES))


def _is_at_prompt(frames: list[FrameType]) -> bool:
    for frame in frames:
        if _is_users(frame.f_code.co_filename):
            return False
        if str(frame.f_globals.get("__name__")).partition(".")[0] in _PROMPTS:
            return True
    return False


def _function(within: list[FrameType]) -> str:
    """The innermost function of torch.distributed, else of torch or trainkit."""
    known = [f for f in within if f.f_code.co_filename.startswith((_TORCH, _TRAINKIT))]
    for frame in known:
        if _is_distributed(frame) and frame.f_code.co_name != "wrapper":
            return frame.f_code.co_name
    if known and known[0].f_code.co_filename.startswith(_AUTOGRAD):
        return "backward"
    return known[0].f_code.co_qualname if known else ""


def _waits(within: list[FrameType], line: FrameType) -> bool:
    if any(_is_distributed(frame) for frame in within):
        return True
    innermost = within[0] if within else line
    if innermost.f_code.co_filename.startswith((*_AUTOGRAD, *_MEETING)):
        return True
    return not within and _BLOCKING_CALL.search(_text(line)) is not None


def _is_distributed(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_DISTRIBUTED)


def _text(frame: FrameType) -> str:
    summary = traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
    return summary.line or ""


def _shown(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{path}:{frame.f_lineno} ({frame.f_code.co_name})"
