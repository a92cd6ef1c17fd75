"""A folder that is read as a store is: by ranges alone, with what was asked for and what went wrong."""

from pathlib import Path

from trainkit.storage import Location
from trainkit.storage.local import LocalLocation

FAR = "far://"


class FarLocation(Location):
    """A file or a folder of this machine that has no local path.

    What was read and announced is kept by all that come of one `root`, in this process.
    """

    def __init__(self, path: Path, log: list[tuple[str, str, list[tuple[int, int]]]]) -> None:
        self.path, self.log, self._local = path, log, LocalLocation(path)

    @property
    def shown(self) -> str:
        return f"{FAR}{self.path}"

    def child(self, name: str) -> "FarLocation":
        return FarLocation(self.path / name, self.log)

    def is_file(self) -> bool:
        return self.path.is_file()

    def is_folder(self) -> bool:
        return self.path.is_dir()

    def names(self) -> list[str]:
        return self._local.names()

    def size(self) -> int:
        return self._local.size()

    def version(self) -> str:
        return ""

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        if stop is not None:
            self.log.append(("read", self.path.name, [(start, stop)]))
        return self._local.read(start, stop)

    def prefetch(self, ranges, check=None) -> int:
        self.log.append(("prefetch", self.path.name, list(ranges)))
        return 0

    def write(self, content: bytes) -> None:
        raise NotImplementedError

    def upload(self, path: Path) -> None:
        raise NotImplementedError

    def download(self, path: Path) -> None:
        raise NotImplementedError

    def remove(self) -> None:
        raise NotImplementedError

    def local_path(self) -> None:
        return None


def locate_far(path):
    """In place of `locate`: paths below /far are of a store."""
    text = str(path)
    if text.startswith(FAR) or text.startswith("far:/"):
        return FarLocation(Path("/" + text.removeprefix("far:").lstrip("/")), [])
    return LocalLocation(Path(path).expanduser())
