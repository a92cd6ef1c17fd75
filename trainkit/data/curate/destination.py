"""Destination: a folder that is there whole or not at all."""

import fcntl
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from trainkit.errors import ConfigError, DataError


class Destination:
    """A context manager that gives a folder to fill, and puts it in its place if no error was raised.

    What a killed process left beside it is removed by the next one that writes to the same place.

    Args:
        path: of the folder, which must not exist, or be empty.
        source: that is read: the folder must not be in it, nor it in the folder; None: not checked.

    Raises:
        ConfigError: for a folder that holds something, or lies in the source, or cannot be made.
    """

    def __init__(self, path: Path, source: Path | None = None) -> None:
        self.path = path.absolute()
        shown = f"--to={path}"
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(f"{shown} exists already; give another folder, or remove it")
        if source is not None:
            ours, theirs = self.path.resolve(), source.resolve()
            if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
                raise ConfigError(f"{shown}: must be beside {source}, which is read, and neither in it nor around it")
        self._aside = self.path.with_name(f".{self.path.name}-{secrets.token_hex(4)}.part")
        self._descriptor = -1

    def __enter__(self) -> Path:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            self._aside.mkdir()
        except OSError as error:
            raise ConfigError(f"--to={self.path} cannot be written: {error.strerror or error}") from error
        self._descriptor = _lock(self._aside)
        return self._aside

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._aside.rename(self.path)
            elif isinstance(error, OSError) and error.errno is not None:
                raise DataError(f"--to={self.path} cannot be written: {error.strerror}") from error
        except OSError as failed:
            raise ConfigError(f"--to={self.path} cannot be written: {failed.strerror or failed}") from failed
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)
            if self._descriptor >= 0:
                os.close(self._descriptor)

    def _remove_abandoned(self) -> None:
        for path in self.path.parent.glob(f".{self.path.name}-????????.part"):
            descriptor = _lock(path)
            if descriptor >= 0:
                shutil.rmtree(path, ignore_errors=True)
                os.close(descriptor)


def _lock(path: Path) -> int:
    """Locks a folder until this process ends; -1: another process has locked it, or the file system has no locks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    os.close(descriptor)
    return -1
