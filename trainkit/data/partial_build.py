"""PartialBuild: the progress of a long build, recorded beside it, so that one that was killed is continued."""

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from trainkit.cache import PART

NOTE_INTERVAL_S = 2.0
_NOTE = f"{PART}json"


class PartialBuild:
    """The finished part of a build in a directory. A note is written only after the data it describes is on the disk.

    Args:
        directory: where the build writes.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._noted = directory, time.monotonic()

    def read(self) -> dict[str, Any]:
        """Returns the last note; empty where there is none."""
        path = self._directory / _NOTE
        return json.loads(path.read_text()) if path.is_file() else {}

    def note(self, files: Iterable[IO[bytes]], values: Callable[[], dict[str, Any]]) -> None:
        """Flushes `files`, and then records `values`; at most every two seconds.

        Args:
            files: the open files of the build.
            values: returns the JSON-serializable progress.
        """
        if time.monotonic() - self._noted < NOTE_INTERVAL_S:
            return
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        self.write(_NOTE, lambda path: path.write_text(json.dumps(values())))
        self._noted = time.monotonic()

    def write(self, name: str, write: Callable[[Path], object]) -> Path:
        """Writes a file that appears whole or not at all.

        Args:
            name: of the file.
            write: called with the path to write to.

        Returns:
            The path of the file.
        """
        path, temporary = self._directory / name, self._directory / f".{name}"
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        return path

    def made(self, name: str, write: Callable[[Path], object]) -> Path:
        """Writes a file as `write` does, unless it exists."""
        path = self._directory / name
        return path if path.is_file() else self.write(name, write)


def reopen(path: Path, num_bytes: int) -> IO[bytes]:
    """Opens a file for writing after its first bytes.

    Args:
        path: the file, created where it does not exist.
        num_bytes: to keep; the rest is dropped.

    Returns:
        The open file, positioned at its end.
    """
    file = path.open("r+b" if path.is_file() else "wb")
    file.truncate(num_bytes)
    file.seek(num_bytes)
    return file
