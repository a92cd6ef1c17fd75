"""LocalLocation: a file or a folder on this machine."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from trainkit.errors import StorageError
from trainkit.storage.location import Location


class LocalLocation(Location):
    """A path.

    Args:
        path: of the file or folder, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def shown(self) -> str:
        return str(self.path)

    def child(self, name: str) -> "LocalLocation":
        return LocalLocation(self.path / name)

    def is_file(self) -> bool:
        return self.path.is_file()

    def is_folder(self) -> bool:
        return self.path.is_dir()

    def names(self) -> list[str]:
        found = []
        for directory, folders, files in os.walk(self.path, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = Path(directory).relative_to(self.path)
            found += [(below / name).as_posix() for name in files if not name.startswith(".")]
        return sorted(found)

    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError as error:
            raise self._failed("read", error) from error

    def version(self) -> str:
        try:
            status = self.path.stat()
        except OSError as error:
            raise self._failed("read", error) from error
        return f"modified {status.st_mtime_ns} {status.st_ctime_ns}"

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                content = file.read() if stop is None else file.read(stop - start)
        except OSError as error:
            raise self._failed("read", error) from error
        if stop is not None and len(content) < stop - start:
            raise StorageError(f"{self.path} ends at byte {start + len(content):,}, before {stop:,}: copy it again")
        return content

    def write(self, content: bytes) -> None:
        self._put(lambda half: half.write_bytes(content))

    def upload(self, path: Path) -> None:
        self._put(lambda half: shutil.copyfile(path, half))

    def download(self, path: Path) -> None:
        try:
            shutil.copyfile(self.path, path)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise self._failed(f"copied to {path}", error) from error

    def remove(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise self._failed("removed", error) from error

    def local_path(self) -> Path:
        return self.path

    def _put(self, fill: Callable[[Path], object]) -> None:
        half = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fill(half)
            half.replace(self.path)
        except OSError as error:
            half.unlink(missing_ok=True)
            raise self._failed("written", error) from error

    def _failed(self, what: str, error: OSError) -> StorageError:
        return StorageError(f"{self.path} cannot be {what}: {error.strerror or error}")
