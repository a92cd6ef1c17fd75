"""The compiled ops: found beside this file, in the cache, or built now; loaded once a process."""

import fcntl
import json
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainkit.cache import ENVIRONMENT_VARIABLE, cache_root, cached
from trainkit.errors import ConfigError
from trainkit.ops import build

HERE = Path(__file__).parent
PATIENCE_S = 2.0


@dataclass(frozen=True)
class Library:
    """A library that fits this machine, and the JSON that was written when it was built."""

    path: Path
    description: dict[str, Any]

    @property
    def has_cuda(self) -> bool:
        return bool(self.description["archs"])


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

    Called once or often, from any thread. Raises ConfigError when the build fails, and with `require` where there is
    no compiler; warns of that once otherwise.
    """
    with _state.lock:
        if _state.loaded is None and _state.missing is None:
            try:
                _state.loaded = find() or _build(build.plan())
            except build.NoCompilerError as error:
                _state.missing = str(error)
            except build.BuildError as error:
                raise ConfigError(f"the ops cannot be built: {error}") from error
            if _state.loaded:
                torch.ops.load_library(_state.loaded.path)
                while _state.waiting:
                    _state.waiting.pop(0)()
        if _state.missing:
            without(f"the ops are not built: {_state.missing}", require)
        return _state.loaded


def without(reason: str, require: bool) -> None:
    """Warns, once, that references in plain PyTorch are used because of `reason`; with `require`, raises ConfigError."""
    if require:
        raise ConfigError(f"ops.require=true: {reason}")
    if reason not in _state.warned:
        _state.warned.add(reason)
        warnings.warn(f"trainkit: {reason}; until then plain PyTorch is used, which is slower", stacklevel=3)


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


def find() -> Library | None:
    """The library that was built for these sources, this torch and this CPU; None when there is none."""
    try:
        needs = build.requirements(build.CSRC, build.find_torch())
        plan = build.plan()
    except build.NoCompilerError:
        plan = None
    except build.BuildError as error:
        raise ConfigError(f"the ops cannot be built: {error}") from error
    cache = directory()
    names = [plan.key] if plan else [path.name for path in sorted(cache.glob(f"{build.requirements_key(needs)}-*"))]
    for place in [HERE, *(cache / name for name in names)]:
        found = _read(place)
        if found and found.description["requirements"] == needs and (plan is None or _covers(found, plan)):
            return found
    return None


def _covers(found: Library, plan: build.Plan) -> bool:
    return set(plan.archs) <= set(found.description["archs"])


def _read(place: Path) -> Library | None:
    path, description = place / build.LIBRARY, place / build.DESCRIPTION
    if not path.is_file() or not description.is_file():
        return None
    return Library(path, json.loads(description.read_text()))


def directory() -> Path:
    """Where libraries are kept."""
    return cache_root() / "ops"


# -- building ----------------------------------------------------------------------------------------------------------


def ensure(plan: build.Plan) -> Path:
    """The path of the library of `plan`, built when the cache has none.

    Processes that ask for the same one at once build it once. Raises ConfigError when the build fails or the cache
    cannot be written.
    """
    try:
        return _build(plan).path
    except build.BuildError as error:
        raise ConfigError(f"the library cannot be built: {error}") from error


def _build(plan: build.Plan) -> Library:
    root = directory()
    found = _read(root / plan.key)
    if found is None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _alone(root / f"{plan.key}.lock"):
                for left in root.glob(f".{plan.key}-*"):
                    shutil.rmtree(left, ignore_errors=True)  # by a build that was killed: no other is at work
                cached(root, plan.key, lambda aside: _compile(plan, aside))
        except OSError as error:
            raise ConfigError(
                f"the ops cannot be built into {root} ({error.strerror or error}); "
                f"set {ENVIRONMENT_VARIABLE}=DIRECTORY to one that can be written"
            ) from error
        found = _read(root / plan.key)
    assert found
    return found


def _compile(plan: build.Plan, aside: Path) -> None:
    started = time.monotonic()

    def progress(num_done: int, num_all: int, name: str) -> None:
        if time.monotonic() - started > PATIENCE_S:
            print(f"trainkit: building the ops: {num_done}/{num_all} ({name})", file=sys.stderr, flush=True)

    build.compile_into(plan, aside, progress)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds the kernel's lock on `path`, which ends with the process however it ends."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"trainkit: waiting for another process's build ({path})", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
