"""Cache directories: named by their content, built once, and there whole or not at all."""

import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainkit.errors import DataError

ENVIRONMENT_VARIABLE = "TRAINKIT_CACHE"
ABANDONED_AFTER_S = 600.0
"""Time without a write after which another machine's partial build, whose lock may not be visible, is abandoned."""
REMOVED_AFTER_S = 86_400.0
"""Time for which an abandoned build that can be continued is kept."""
PART = "part."
"""How the names of files begin that only the build needs: they are removed once it is whole."""
_BUILDER = "builder"
_BUILT = "built"


def cache_root(cache_dir: Path | None = None) -> Path:
    """Returns `cache_dir`, else $TRAINKIT_CACHE, else ~/.cache/trainkit."""
    return Path(cache_dir or os.environ.get(ENVIRONMENT_VARIABLE) or Path.home() / ".cache" / "trainkit").expanduser()


def cached(root: Path, name: str, build: Callable[[Path], object], *, resumes: bool = False) -> Path:
    """Returns the directory `root/name`, which is built if it does not exist.

    A build fills a temporary directory, which is then renamed. Processes may race: each builds its own, one is kept,
    and all return the same path. What a killed process left is removed by the next build. Files and directories get the
    permissions of the umask.

    Args:
        root: the cache.
        name: contains everything that the content depends on: a hash of the inputs, the settings and the version of the
            format.
        build: called with the directory to fill.
        resumes: whether `build` continues from what is in the directory: it is then given what a killed or interrupted
            process left under this `name`, which is removed only after a day. Files named `part.*` are for this alone.

    Returns:
        The path of the directory.

    Raises:
        DataError: where the directory cannot be written, or the disk is full.
    """
    target = root / name
    if target.is_dir():
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        aside, descriptor = _claim(root, name, resumes)
        _remove_abandoned(root, name, REMOVED_AFTER_S if resumes else ABANDONED_AFTER_S)
    except OSError as error:
        raise _cannot_write(root, error) from error
    is_left = False
    try:
        if not (aside / _BUILT).exists():
            build(aside)
            (aside / _BUILT).touch()  # one that is killed from here on is not built again
        for path in (*aside.glob(f"{PART}*"), *aside.glob(f".{PART}*")):
            path.unlink()
        _move(aside, target)
        for name in (_BUILT, _BUILDER):
            (target / name).unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise _cannot_write(root, error) from error
    except KeyboardInterrupt:
        is_left = resumes
        raise
    finally:
        if not is_left:
            shutil.rmtree(aside, ignore_errors=True)
        os.close(descriptor)
    return target


def _cannot_write(root: Path, error: OSError) -> DataError:
    return DataError(
        f"the cache directory {root} cannot be written ({error.strerror}); free some space there, or "
        f"set data.cache_dir=DIRECTORY or {ENVIRONMENT_VARIABLE}=DIRECTORY to one that can"
    )


def _claim(root: Path, name: str, resumes: bool) -> tuple[Path, int]:
    """Returns a directory to build in, and the descriptor of its lock, which the process releases however it ends.

    An abandoned build is renamed, so only one of several processes gets it.
    """
    aside = root / f".{name}-{secrets.token_hex(4)}"
    for path in root.glob(f".{name}-*") if resumes else ():
        descriptor = _locked(path, lambda path, age: _is_of_this_machine(path) or age > ABANDONED_AFTER_S)
        if descriptor is not None:
            try:
                path.rename(aside)
            except OSError:  # another machine has it
                os.close(descriptor)
                continue
            if not _is_of_this_machine(aside):
                _sign(aside)
            return aside, descriptor
    aside.mkdir()
    descriptor = os.open(aside, os.O_RDONLY)
    with suppress(OSError):  # a file system without locks: then no build counts as abandoned
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    _sign(aside)
    return aside, descriptor


def _sign(aside: Path) -> None:
    """Writes whose build it is, whole or not at all: one that a killed process had half written would be nobody's."""
    unnamed = aside / f".{_BUILDER}"
    unnamed.write_text(socket.gethostname())
    unnamed.replace(aside / _BUILDER)


def _is_of_this_machine(path: Path) -> bool:
    """Whether it was built on this machine, where locks are visible."""
    return (path / _BUILDER).is_file() and (path / _BUILDER).read_text() == socket.gethostname()


def _locked(path: Path, is_abandoned: Callable[[Path, float], bool]) -> int | None:
    """Locks `path` if no process builds it and `is_abandoned(path, seconds since a change)`; returns the descriptor."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # removed meanwhile, another user's, or no directory
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        newest = max(entry.stat().st_mtime for entry in (path, *path.iterdir()))
        is_free = is_abandoned(path, time.time() - newest)
    except OSError:  # a process builds it, or has just removed it
        is_free = False
    if not is_free:
        os.close(descriptor)
    return descriptor if is_free else None


def _remove_abandoned(root: Path, name: str, patience_s: float) -> None:
    """Removes the partial builds of processes that have ended, of the kind of `name`.

    A build holds a lock while it runs; another machine's lock may not be visible, so recent changes are kept.
    """
    kind = re.compile(rf"\.{re.escape(name.split('-')[0])}-[\w.-]*[0-9a-f]{{8}}-[a-z0-9_]{{8}}")
    for path in [path for path in root.iterdir() if kind.fullmatch(path.name)]:
        if (descriptor := _locked(path, lambda _, age: age > patience_s)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)


def _move(aside: Path, target: Path) -> None:
    try:
        aside.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first, with the same content
            raise
