"""The compiled ops: found beside this file, found in the cache, or built now; loaded once a process."""

import fcntl
import json
import os
import shlex
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from trainkit.cache import ENVIRONMENT_VARIABLE, cache_root, cached
from trainkit.errors import ConfigError
from trainkit.ops import build

HERE = Path(__file__).parent
PATIENCE_S = 2.0
WORD_EVERY_S = 15.0
"""Where there is no terminal, a build says so often how far it is."""
ROOM = 100_000_000
"""Bytes that a build may need."""


@dataclass(frozen=True)
class Library:
    """A library that fits this machine, and the JSON that was written when it was built."""

    path: Path
    description: dict[str, Any]

    @property
    def archs(self) -> list[str]:
        """Compute capabilities that CUDA kernels were compiled for; none where there was no nvcc."""
        return self.description["archs"]

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a GPU of this compute capability has kernels: of its generation, or PTX of an older one."""
        return _runs_on(tuple(self.archs), capability)


@lru_cache  # every op asks
def _runs_on(archs: tuple[str, ...], capability: tuple[int, int]) -> bool:
    numbers = [tuple(map(int, arch.split("."))) for arch in archs]
    same_generation = any(number[0] == capability[0] and number <= capability for number in numbers)
    return same_generation or any(number <= capability for number in numbers[-1:])


class _State:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.loaded: Library | None = None
        self.missing: str | None = None
        self.waiting: list[Callable[[], None]] = []
        self.warned: set[str] = set()


_state = _State()


def load(require: bool = False) -> Library | None:
    """Makes `torch.ops.trainkit.*` available, building the library when there is none; None without a compiler.

    Called once or often, from any thread. Warns once when there is no compiler; ConfigError with `require`, and always
    when a build fails.
    """
    with _state.lock:
        if _state.loaded is None and _state.missing is None:
            _load()
        if _state.missing:
            without(_state.missing, require)
        return _state.loaded


def without(reason: str, require: bool) -> None:
    """Warns once that `reason` leaves plain PyTorch to run; raises ConfigError with `require`."""
    if require:
        raise ConfigError(f"ops.require=true: {reason}")
    if reason not in _state.warned:
        _state.warned.add(reason)
        warnings.warn(f"trainkit: {reason}. Until then plain PyTorch runs in their place", stacklevel=3)


def is_available() -> bool:
    """Whether the library is loaded; loads nothing."""
    return _state.loaded is not None


def on_load(register: Callable[[], None]) -> Callable[[], None]:
    """Decorates a function that registers fakes and derivatives of ops: it is called when they are there."""
    with _state.lock:
        if _state.loaded:
            register()
        else:
            _state.waiting.append(register)
    return register


def find(plan: build.Plan | None) -> Library | None:
    """What was built for these sources, this torch, this CPU, and the GPUs of `plan`; None when nothing was.

    plan: None where there is no compiler; then any that runs here will do.
    """
    needed = build.needs(build.CSRC, build.find_torch())
    kept = [directory() / plan.key] if plan else sorted(directory().glob("*"))
    for place in [HERE, *kept]:
        found = _read(place)
        if found and build.fits(found.description, needed) and set(plan.archs if plan else ()) <= set(found.archs):
            if place != HERE:  # which is as much trusted as this file
                _require_own(place)
            return found
    return None


def compiled(*, again: bool = False) -> Path:
    """The path of this library: the one that fits, or one built now; built anew with `again`. Loads nothing."""
    with _as_config_error():
        plan = build.plan()
        return ((None if again else find(plan)) or _build(plan, again)).path


def directory() -> Path:
    """Where libraries are kept."""
    return cache_root() / "ops"


def ensure(plan: build.Plan, *, again: bool = False) -> Path:
    """The path of the library of `plan`, built when the cache has none, or `again` by wish.

    Processes that ask for the same one at once build it once. Raises ConfigError when the build fails or the cache
    cannot be written.
    """
    with _as_config_error():
        return _build(plan, again).path


def _load() -> None:
    missing = None
    with _as_config_error():
        try:
            plan = build.plan()
        except build.NoCompilerError as error:
            plan, missing = None, f"the ops are not compiled: {error}"
        found = find(plan) or (_build(plan) if plan else None)
    _state.missing = missing
    if found:
        torch.ops.load_library(found.path)
        _state.loaded, _state.missing = found, None
        while _state.waiting:
            _state.waiting.pop(0)()


def _read(place: Path) -> Library | None:
    path, description = place / build.LIBRARY, place / build.DESCRIPTION
    if not path.is_file() or not description.is_file():
        return None
    return Library(path, json.loads(description.read_text()))


def _require_own(place: Path) -> None:
    """Raises ConfigError for a kept library that another user can have written: it runs as this one."""
    for path in (place, place / build.LIBRARY, place / build.DESCRIPTION):
        found = path.stat()
        if found.st_uid not in (os.geteuid(), 0):
            raise ConfigError(
                f"the compiled ops in {place} are of another user (uid {found.st_uid}), and would run as you; "
                f"type: export {ENVIRONMENT_VARIABLE}=DIRECTORY, one of your own"
            )
        if found.st_mode & 0o022:
            raise ConfigError(
                f"the compiled ops in {place} can be written by other users (mode {found.st_mode & 0o777:o}), and "
                f"would run as you; type: rm -r {shlex.quote(str(place))}"
            )


# -- building ----------------------------------------------------------------------------------------------------------


@contextmanager
def _as_config_error() -> Iterator[None]:
    try:
        yield
    except build.BuildError as error:
        raise ConfigError(f"the ops cannot be compiled: {error}") from error


def _build(plan: build.Plan, again: bool = False) -> Library:
    root = directory()
    found = None if again else _read(root / plan.key)
    if found is None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _alone(root / f"{plan.key}.lock") as alone:
                for left in root.glob(f".{plan.key}-*") if alone else ():
                    shutil.rmtree(left, ignore_errors=True)  # by a build that was killed
                if again:
                    shutil.rmtree(root / plan.key, ignore_errors=True)
                # Whatever the umask: what others can write is not loaded.
                cached(root, plan.key, lambda aside: _compile(plan, aside)).chmod(0o755)
        except (OSError, build.BuildError) as error:
            if isinstance(error, build.BuildError) and shutil.disk_usage(root).free > ROOM:
                raise
            raise ConfigError(
                f"the ops cannot be built into {root} ({getattr(error, 'strerror', None) or 'the disk is full'}); "
                f"set {ENVIRONMENT_VARIABLE}=DIRECTORY to one that can be written"
            ) from error
        found = _read(root / plan.key)
    assert found, f"{root / plan.key} is not whole"
    _require_own(root / plan.key)
    return found


def _compile(plan: build.Plan, aside: Path) -> None:
    kinds = f"for CPU and CUDA {', '.join(plan.archs)}" if plan.archs else "for CPU"
    with _telling(f"compiling {len(plan.sources)} files of ops {kinds}, once") as tell:
        build.compile_into(plan, aside, tell)


@contextmanager
def _telling(what: str) -> Iterator[build.Progress]:
    """After two seconds a line on stderr, which moves where that is a terminal; elsewhere more lines follow."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    status = console.status(f"trainkit: {what} ...")
    show = status.start if console.is_terminal else lambda: _say(f"{what} ...")
    timer = threading.Timer(PATIENCE_S, show)
    timer.daemon = True
    started = last_word = time.monotonic()

    def tell(num_done: int, num_all: int) -> None:
        nonlocal last_word
        status.update(f"trainkit: {what}: {num_done} of {num_all} ...")
        if not console.is_terminal and time.monotonic() - last_word > WORD_EVERY_S:
            last_word = time.monotonic()
            _say(f"compiled {num_done} of {num_all} files of ops")

    timer.start()
    try:
        yield tell
    finally:
        timer.cancel()
        timer.join()
        status.stop()
    if time.monotonic() - started > PATIENCE_S:
        _say(f"compiled the ops in {time.monotonic() - started:.0f} s")


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Holds the kernel's lock on `path`, which ends with the process however it does; yields whether there is one."""
    with path.open("a+") as file:
        timer = threading.Timer(PATIENCE_S, lambda: _say(f"another process compiles the ops; waiting ({path})"))
        timer.daemon = True
        timer.start()
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False  # a file system without locks: each process builds its own, and one is kept
        finally:
            timer.cancel()
        yield alone


def _say(text: str) -> None:
    print(f"trainkit: {text}", file=sys.stderr, flush=True)
