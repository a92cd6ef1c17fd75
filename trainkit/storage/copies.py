"""Copies of single files on the local disk, for as long as they are read, for libraries that take a path only."""

import contextlib
import fcntl
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trainkit.cache import ENVIRONMENT_VARIABLE, cache_root
from trainkit.errors import StorageError
from trainkit.storage.location import Location

_BLOCK_BYTES = 1 << 24


@contextlib.contextmanager
def copied(location: Location) -> Iterator[Path]:
    """Context manager that gives a path of a file: its own, or that of a copy, which is removed at the end.

    The copies that a killed process left are removed by the next one.

    Args:
        location: of the file.

    Raises:
        StorageError: where it cannot be read, or the disk is full.
    """
    own = location.local_path()
    if own is not None:
        yield own
        return
    root = cache_root() / "copies"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        folder = Path(tempfile.mkdtemp(dir=root))
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        raise _cannot_write(root, error) from error
    path = folder / posixpath.basename(location.shown)
    try:
        try:
            _copy(location, path)
        except OSError as error:
            raise _cannot_write(root, error) from error
        yield path
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
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # it is being read
            pass
        finally:
            os.close(descriptor)


def _cannot_write(root: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{root} cannot be written ({error.strerror}); free some space there, or set {ENVIRONMENT_VARIABLE}=DIRECTORY"
    )
