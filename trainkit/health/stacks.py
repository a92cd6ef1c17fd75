"""Where a thread of this process stands, and what it waits for there."""

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
_DUMPED = re.compile(r'  File "(.*)", line (\d+) in (.*)')
_IDENT_WIDTH = 2 + 2 * struct.calcsize("L")
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
    places = [_Place(f.f_code.co_filename, f.f_lineno or 0, f.f_code.co_name) for f in frames]
    index = _index_of_line(places)
    within, line = places[:index], places[index]
    roots = [str(f.f_globals.get("__name__")).partition(".")[0] for f in frames]
    trace = hash(tuple((id(f.f_code), f.f_lasti) for f in frames))
    return Stand(str(line), _function(within), _waits(within, line), _is_at_prompt(places, roots), trace)


def stand_in(dump: str, thread: int) -> Stand | None:
    """The stand of the thread with this identifier in what faulthandler dumped."""
    for part in re.split(r"\n(?=Thread|Current thread)", dump):
        if f"{thread:#0{_IDENT_WIDTH}x} " in part.partition("\n")[0]:
            places = [_Place(path, int(number), name) for path, number, name in _DUMPED.findall(part)]
            if places:
                index = _index_of_line(places)
                return Stand(str(places[index]), _function(places[:index]), False, False, 0)
    return None


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

    It records by default, with gloo and with NCCL. Those of threads beside training do not count.
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
class _Place:
    path: str
    number: int
    function: str

    def __str__(self) -> str:
        path = Path(self.path)
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return f"{path}:{self.number} ({self.function})"

    @property
    def is_users(self) -> bool:
        if self.path.startswith("<"):
            return self.path.startswith(_TYPED)
        return not self.path.startswith((_TORCH, _TRAINKIT, *_STANDARD, *_PACKAGES))

    @property
    def is_distributed(self) -> bool:
        return self.path.startswith(_DISTRIBUTED)

    @property
    def text(self) -> str:
        return linecache.getline(self.path, self.number)


def _index_of_line(places: list[_Place]) -> int:
    """The place to name: the innermost that is a user's, else an installed package's, else trainkit's own."""
    packages: list[int] = []
    own: list[int] = []
    for index, place in enumerate(places):
        if place.path.startswith(_OUTER):
            break
        if place.is_users:
            return index
        if place.path.startswith(_TRAINKIT):
            own.append(index)
        elif place.path.startswith(_PACKAGES) and not place.path.startswith(_TORCH):
            packages.append(index)
    return (packages or own or [0])[0]


def _function(within: list[_Place]) -> str:
    """The innermost function of torch.distributed, else of torch or trainkit."""
    known = [place for place in within if place.path.startswith((_TORCH, _TRAINKIT))]
    for place in known:
        if place.is_distributed and place.function != "wrapper":
            return place.function
    if known and known[0].path.startswith(_AUTOGRAD):
        return "backward"
    return known[0].function if known else ""


def _waits(within: list[_Place], line: _Place) -> bool:
    if any(place.is_distributed for place in within):
        return True
    innermost = within[0] if within else line
    if innermost.path.startswith((*_AUTOGRAD, *_MEETING)):
        return True
    return not within and _BLOCKING_CALL.search(line.text) is not None


def _is_at_prompt(places: list[_Place], roots: list[str]) -> bool:
    for place, root in zip(places, roots, strict=True):
        if place.is_users:
            return False
        if root in _PROMPTS:
            return True
    return False
