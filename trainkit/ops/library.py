"""The library of compiled ops: found beside this file, found in the cache, or built; loaded once per process."""

import fcntl
import json
import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from trainkit.cache import ENVIRONMENT_VARIABLE, cache_root, cached
from trainkit.errors import ConfigError
from trainkit.logger import logger
from trainkit.ops import build

HERE = Path(__file__).parent
PATIENCE_S = 2.0
PROGRESS_EVERY_S = 15.0
"""Interval of a build's progress lines where there is no terminal."""
BUILD_BYTES = 100_000_000
"""Disk space that a build may need."""


@dataclass(frozen=True)
class Library:
    """A library that fits this machine.

    Args:
        path: of the library.
        description: the JSON that was written when it was built.
    """

    path: Path
    description: dict[str, Any]

    @property
    def archs(self) -> list[str]:
        """Compute capabilities that CUDA kernels were compiled for; empty without nvcc."""
        return self.description["archs"]

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a GPU of this compute capability has kernels: of its generation, or PTX of an older one."""
        return _runs_on(tuple(self.archs), capability)


@lru_cache  # called by every op
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
    """Makes `torch.ops.trainkit.*` available, and builds the library if there is none. May be called from any thread.

    Args:
        require: whether a missing compiler is an error; otherwise it is one warning.

    Returns:
        The library; None without a compiler.

    Raises:
        ConfigError: where a build fails, and with `require` where there is no compiler.
    """
    with _state.lock:
        if _state.loaded is None and _state.missing is None:
            _load()
        if _state.missing:
            without(_state.missing, require)
        return _state.loaded


def without(reason: str, require: bool) -> None:
    """Warns once that plain PyTorch is used.

    Args:
        reason: why the ops cannot run compiled.
        require: whether that is an error.

    Raises:
        ConfigError: with `require`.
    """
    if require:
        raise ConfigError(f"ops.require=true: {reason}")
    if reason not in _state.warned:
        _state.warned.add(reason)
        logger(__name__).warning(f"{reason}. Plain PyTorch is used instead")


def is_available() -> bool:
    """Whether the library is loaded; does not load it."""
    return _state.loaded is not None


def on_load(register: Callable[[], None]) -> Callable[[], None]:
    """Decorates a function that registers fakes and derivatives of ops; it is called when the library is loaded."""
    with _state.lock:
        if _state.loaded:
            register()
        else:
            _state.waiting.append(register)
    return register


def find(plan: build.Plan | None) -> Library | None:
    """Finds a library that was built for these sources, this torch and this CPU.

    Args:
        plan: whose GPUs the library must support; None: there is no compiler, and any library that runs here is
            accepted.

    Returns:
        The library; None where there is none.

    Raises:
        ConfigError: for one in the cache that another user may have written.
    """
    needed = build.needs(build.CSRC, build.find_torch())
    in_cache = [directory() / plan.key] if plan else sorted(directory().glob("*"))
    for folder in [HERE, *in_cache]:
        found = _read(folder)
        if found and build.fits(found.description, needed) and set(plan.archs if plan else ()) <= set(found.archs):
            if folder != HERE:  # which is trusted like this file
                _require_own(folder)
            return found
    return None


def compiled(*, again: bool = False) -> Path:
    """Returns the path of the library, which is built if there is none that fits; does not load it.

    Args:
        again: whether it is built again in any case.

    Raises:
        ConfigError: where the build fails.
    """
    with _as_config_error():
        plan = build.plan()
        return ((None if again else find(plan)) or _build(plan, again)).path


def directory() -> Path:
    """Returns the cache directory of libraries."""
    return cache_root() / "ops"


def ensure(plan: build.Plan, *, again: bool = False) -> Path:
    """Returns the path of the library of `plan`, which is built if the cache has none.

    Of processes that need the same one at the same time, one builds it.

    Args:
        plan: of the library.
        again: whether it is built again in any case.

    Raises:
        ConfigError: where the build fails or the cache cannot be written.
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


def _read(folder: Path) -> Library | None:
    path, description = folder / build.LIBRARY, folder / build.DESCRIPTION
    if not path.is_file() or not description.is_file():
        return None
    return Library(path, json.loads(description.read_text()))


def _require_own(folder: Path) -> None:
    """Raises ConfigError for a cached library that another user may have written: it would run as this user."""
    for path in (folder, folder / build.LIBRARY, folder / build.DESCRIPTION):
        found = path.stat()
        if found.st_uid not in (os.geteuid(), 0):
            raise ConfigError(
                f"the compiled ops in {folder} belong to another user (uid {found.st_uid}), and would run as you; "
                f"type: export {ENVIRONMENT_VARIABLE}=DIRECTORY, one of your own"
            )
        if found.st_mode & 0o022:
            raise ConfigError(
                f"the compiled ops in {folder} can be written by other users (mode {found.st_mode & 0o777:o}), and "
                f"would run as you; type: rm -r {shlex.quote(str(folder))}"
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
            with _locked(root / f"{plan.key}.lock") as is_locked:
                for left in root.glob(f".{plan.key}-*") if is_locked else ():
                    shutil.rmtree(left, ignore_errors=True)  # left by a killed build
                if again:
                    shutil.rmtree(root / plan.key, ignore_errors=True)
                # Whatever the umask is: a directory that others can write is not used.
                cached(root, plan.key, lambda aside: _compile(plan, aside)).chmod(0o755)
        except (OSError, build.BuildError) as error:
            if isinstance(error, build.BuildError) and shutil.disk_usage(root).free > BUILD_BYTES:
                raise
            raise ConfigError(
                f"the ops cannot be built into {root} ({getattr(error, 'strerror', None) or 'the disk is full'}); "
                f"set {ENVIRONMENT_VARIABLE}=DIRECTORY to one that can be written"
            ) from error
        found = _read(root / plan.key)
    assert found, f"{root / plan.key} is incomplete"
    _require_own(root / plan.key)
    return found


def _compile(plan: build.Plan, aside: Path) -> None:
    kinds = f"for CPU and CUDA {', '.join(plan.archs)}" if plan.archs else "for CPU"
    with _progress_shown(f"compiling {len(plan.sources)} files of ops {kinds}, once") as report:
        build.compile_into(plan, aside, report)


@contextmanager
def _progress_shown(what: str) -> Iterator[build.Progress]:
    """Shows a line on stderr after two seconds, updated on a terminal; elsewhere further lines follow."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    status = console.status(f"trainkit: {what} ...")
    show = status.start if console.is_terminal else lambda: logger(__name__).info(f"{what} ...")
    timer = threading.Timer(PATIENCE_S, show)
    timer.daemon = True
    started = last_line = time.monotonic()

    def report(num_done: int, num_all: int) -> None:
        nonlocal last_line
        status.update(f"trainkit: {what}: {num_done} of {num_all} ...")
        if not console.is_terminal and time.monotonic() - last_line > PROGRESS_EVERY_S:
            last_line = time.monotonic()
            logger(__name__).info(f"compiled {num_done} of {num_all} files of ops")

    timer.start()
    try:
        yield report
    finally:
        timer.cancel()
        timer.join()
        status.stop()
    if time.monotonic() - started > PATIENCE_S:
        logger(__name__).info(f"compiled the ops in {time.monotonic() - started:.0f} s")


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Holds the kernel's lock on `path`, which ends with the process in any case; yields whether it is held."""
    with path.open("a+") as file:
        timer = threading.Timer(
            PATIENCE_S, lambda: logger(__name__).info(f"another process compiles the ops; waiting ({path})")
        )
        timer.daemon = True
        timer.start()
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            is_locked = True
        except OSError:
            is_locked = False  # a file system without locks: each process builds its own, and one is kept
        finally:
            timer.cancel()
        yield is_locked
