"""The part of a long build that is done: noted beside it, so that one that was killed goes on from there."""

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

NOTED_EVERY_S = 2.0
_NOTE = "part.json"


class Part:
    """What is done in `directory`. A note says nothing that is not on the disk before it."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._noted = directory, time.monotonic()

    def read(self) -> dict[str, Any]:
        """The last note; empty where there is none."""
        path = self._directory / _NOTE
        return json.loads(path.read_text()) if path.is_file() else {}

    def note(self, files: Iterable[IO[bytes]], values: Callable[[], dict[str, Any]]) -> None:
        """Every two seconds: writes out `files`, and then that `values` are done."""
        if time.monotonic() - self._noted < NOTED_EVERY_S:
            return
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        self.write(_NOTE, lambda path: path.write_text(json.dumps(values())))
        self._noted = time.monotonic()

    def write(self, name: str, write: Callable[[Path], object]) -> Path:
        """The file `name`, which appears whole or not at all, by `write(path)`."""
        path, temporary = self._directory / name, self._directory / f".{name}"
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        return path

    def made(self, name: str, write: Callable[[Path], object]) -> Path:
        """`write`, unless the file is there."""
        path = self._directory / name
        return path if path.is_file() else self.write(name, write)

    def end(self, *names: str) -> None:
        """Removes the note, and the files `names` that only the build needed."""
        for name in (_NOTE, *names):
            (self._directory / name).unlink(missing_ok=True)


def reopen(path: Path, num_bytes: int) -> IO[bytes]:
    """`path`, cut to its first `num_bytes`, for writing at its end."""
    file = path.open("r+b" if path.is_file() else "wb")
    file.truncate(num_bytes)
    file.seek(num_bytes)
    return file
