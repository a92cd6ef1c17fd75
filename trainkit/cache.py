"""Directories that are built once and then found: keyed by content, and there whole or not at all."""

import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainkit.errors import DataError

ENVIRONMENT_VARIABLE = "TRAINKIT_CACHE"
ABANDONED_AFTER_S = 600.0
"""How long nothing must have been written to a half-built directory whose builder holds no lock that is seen here."""


def cache_root(cache_dir: Path | None = None) -> Path:
    """`cache_dir`, else $TRAINKIT_CACHE, else ~/.cache/trainkit."""
    return Path(cache_dir or os.environ.get(ENVIRONMENT_VARIABLE) or Path.home() / ".cache" / "trainkit").expanduser()


def cached(root: Path, name: str, build: Callable[[Path], None]) -> Path:
    """The directory `root/name`; when it is not there, `build(directory)` fills one aside, which is then renamed.

    Processes may race: each builds its own, one is kept, and all return the same path. `name` must hold everything
    that the content depends on (a hash of the inputs, the settings and the version of the format). What a process
    that was killed left half built is removed by the next one that builds. Files and directories get the permissions
    that the umask gives.
    Raises DataError when the directory cannot be written, or the disk is full.
    """
    target = root / name
    if target.is_dir():
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root, name)
        aside = root / f".{name}-{secrets.token_hex(4)}"
        aside.mkdir()
    except OSError as error:
        raise _cannot_write(root, error) from error
    try:
        with _locked(aside):
            build(aside)
            _move(aside, target)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise _cannot_write(root, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _cannot_write(root: Path, error: OSError) -> DataError:
    return DataError(
        f"the cache directory {root} cannot be written ({error.strerror}); free some space there, or "
        f"set data.cache_dir=DIRECTORY or {ENVIRONMENT_VARIABLE}=DIRECTORY to one that can"
    )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds a lock on `directory`, which ends with this process however that ends."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: then nothing is ever taken for abandoned, see below
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(root: Path, name: str) -> None:
    """Removes what processes that are gone left half built, of the kind of `name`.

    A build holds a lock while it lasts; another machine's lock may not be seen, so what changed lately stays.
    """
    kind = re.compile(rf"\.{re.escape(name.split('-')[0])}-[\w.-]*[0-9a-f]{{8}}-[a-z0-9_]{{8}}")
    for path in [path for path in root.iterdir() if kind.fullmatch(path.name)]:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # gone meanwhile, another user's, or no directory
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            newest = max(entry.stat().st_mtime for entry in (path, *path.iterdir()))
            if time.time() - newest > ABANDONED_AFTER_S:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # somebody builds it
            continue
        finally:
            os.close(descriptor)


def _move(aside: Path, target: Path) -> None:
    try:
        aside.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first: its content is the same
            raise
