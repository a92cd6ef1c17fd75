"""Copies of single files on the local disk, for as long as they are read, for libraries that take a path only."""

import contextlib
import fcntl
import os
import posixpath
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from trainkit.cache import ENVIRONMENT_VARIABLE, cache_root
from trainkit.errors import StorageError
from trainkit.storage.location import Location

_BLOCK_BYTES = 1 << 24
_ABANDONED_AFTER_S = 60.0


@contextlib.contextmanager
def copying(cache_dir: Path | None = None) -> Iterator[Callable[[Location], Path]]:
    """Context manager that gives a function, which returns a path of a file: its own, or that of a copy.

    There is one copy at a time: the next call, and the end, remove it. Those that a killed process left are removed by
    the next one.

    Args:
        cache_dir: where it lies; None: $TRAINKIT_CACHE, else ~/.cache/trainkit.

    Raises:
        StorageError: where the directory cannot be written; by the function, where the file cannot be read, or the
            disk is full.
    """
    root = cache_root(cache_dir) / "copies"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        folder = Path(tempfile.mkdtemp(dir=root))
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        raise _cannot_write(root, error) from error

    def copy(location: Location) -> Path:
        own = location.local_path()
        if own is not None:
            return own
        for path in folder.iterdir():
            path.unlink()
        target = folder / posixpath.basename(location.shown)
        try:
            _copy(location, target)
        except OSError as error:
            raise _cannot_write(root, error) from error
        return target

    try:
        yield copy
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _copy(location: Location, path: Path) -> None:
    size = location.size()
    with path.open("wb") as file:
        for start in range(0, size, _BLOCK_BYTES):
            stop = min(start + _BLOCK_BYTES, size)
            location.prefetch([(stop, min(stop + _BLOCK_BYTES, size))])
            file.write(location.read(start, stop))


def _remove_abandoned(root: Path) -> None:
    for folder in root.iterdir():
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # removed meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # it is being read
            continue
        else:
            if time.time() - os.fstat(descriptor).st_mtime > _ABANDONED_AFTER_S:  # a new one is not locked at once
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def _cannot_write(root: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{root} cannot be written ({error.strerror}); free some space there, or set {ENVIRONMENT_VARIABLE}=DIRECTORY"
    )
