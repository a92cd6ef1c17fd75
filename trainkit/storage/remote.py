"""RemoteLocation: a file or a folder behind a URL."""

import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from trainkit.errors import StorageError
from trainkit.public_url import redacted
from trainkit.storage.downloads import download
from trainkit.storage.location import Check, Location, Range
from trainkit.storage.reader import Reader, reader
from trainkit.storage.remote_file import File, require_within
from trainkit.storage.settings import StorageSettings
from trainkit.storage.store import Info


class RemoteLocation(Location):
    """A URL. What was read is kept in pieces on the local disk, for all processes of the machine.

    A file keeps the size and the version that it had when it was first asked for, in other processes too: a change
    meanwhile is an error where the store says so.

    Args:
        url: without credentials; see `locate`.
        settings: of this machine.
        info: of the file, where it is known.
    """

    def __init__(self, url: str, settings: StorageSettings, info: Info | None = None) -> None:
        self.url, self._settings, self._info = url, settings, info
        self._files: dict[bool, File] = {}

    def __reduce__(self) -> "tuple[type[RemoteLocation], tuple[str, StorageSettings, Info | None]]":
        return RemoteLocation, (self.url, self._settings, self._info)

    @property
    def shown(self) -> str:
        return redacted(self.url)

    def child(self, name: str) -> "RemoteLocation":
        if posixpath.normpath(name) != name or name.startswith(("/", "../")) or name in (".", ".."):
            raise StorageError(f"{self.shown}: {name!r} names no file below it")
        return RemoteLocation(f"{self.url.rstrip('/')}/{self._written(name)}", self._settings)

    def is_file(self) -> bool:
        try:
            self._file()
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return False
            raise
        return True

    def is_folder(self) -> bool:
        return bool(self._reader().ask(self.url, lambda store: store.is_folder(self.url)))

    def names(self) -> list[str]:
        return sorted(self._listed())

    def files(self) -> dict[str, Location]:
        root = self.url.rstrip("/")
        found = {
            name: RemoteLocation(f"{root}/{self._written(name)}", self._settings, info)
            for name, info in sorted(self._listed().items())
        }
        self._reader().all([file._file for file in found.values() if file._info is None])
        return dict(found)

    def size(self) -> int:
        return self._file().info.size

    def version(self) -> str:
        return self._file().info.version

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        file = self._file()
        last = file.info.size if stop is None else stop
        require_within(file, start, last)
        return self._reader().read_ranges(file, [(start, last)])[0]

    def read_ranges(self, ranges: Sequence[Range], check: Check | None = None) -> list[bytes]:
        file = self._file(check is not None)
        size = file.info.size
        for start, stop in ranges:
            if not 0 <= start <= stop <= size:
                require_within(file, start, stop)
        return self._reader().read_ranges(file, ranges, check)

    def prefetch(self, ranges: Sequence[Range], check: Callable[[], Check] | None = None) -> int:
        own = self._reader()
        if self._info is None:  # asking for it takes as long as a read
            own.soon(lambda: self._prefetch(own, ranges, check))
        else:
            self._prefetch(own, ranges, check)
        return own.coming_bytes

    def forget(self, ranges: Sequence[Range]) -> None:
        for is_checked in (False, True):
            self._reader().forget(self._file(is_checked), ranges)

    def write(self, content: bytes) -> None:
        self._reader().ask(self.url, lambda store: store.put(self.url, content))
        self._forget_info()

    def upload(self, path: Path) -> None:
        self._reader().ask(self.url, lambda store: store.put_file(self.url, path))
        self._forget_info()

    def download(self, path: Path) -> None:
        download(self._file(), path, self._settings)

    def remove(self) -> None:
        self._reader().ask(self.url, lambda store: store.remove(self.url))
        self._forget_info()

    def local_path(self) -> Path | None:
        return None

    def _written(self, name: str) -> str:
        return quote(name) if self.url.startswith(("http://", "https://")) else name

    def _listed(self) -> dict[str, Info | None]:
        found: dict[str, Info | None] = self._reader().ask(self.url, lambda store: store.files(self.url))
        return {name: info for name, info in found.items() if not _is_hidden(name)}

    def _file(self, is_checked: bool = False) -> File:
        found = self._files.get(is_checked)
        if found is None:
            if self._info is None:
                self._info = self._reader().info(self.url, lambda: self._info, self._keep_info)
            found = self._files[is_checked] = File(self.url, self._info, is_checked)
        return found

    def _prefetch(self, own: Reader, ranges: Sequence[Range], check: Callable[[], Check] | None) -> None:
        file = self._file(check is not None)
        own.prefetch(file, [(start, min(stop, file.info.size)) for start, stop in ranges], check)

    def _keep_info(self, info: Info) -> None:
        self._info = info

    def _forget_info(self) -> None:
        self._info = None
        self._files.clear()

    def _reader(self) -> Reader:
        return reader(self._settings)


def _is_hidden(name: str) -> bool:
    """Whether a name is hidden, or leads elsewhere: S3 allows any."""
    return posixpath.normpath(name) != name or name.startswith("/") or any(p.startswith(".") for p in name.split("/"))
