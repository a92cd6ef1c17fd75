"""Images behind a URL: a folder, or a zip file that is read by ranges."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from trainkit.data.file_look import Verify
from trainkit.data.formats.opening import kind_of_file, shards_in
from trainkit.data.formats.pictures import Pictures
from trainkit.data.image_formats import by_suffix, extensions
from trainkit.data.image_sources import (
    ImageSource,
    Zip,
    first_folder,
    nothing_in,
    require_bounded,
    require_no_columns,
    require_no_splits,
)
from trainkit.data.progress import announced
from trainkit.errors import DataError
from trainkit.storage import Location, Seekable, locate

if TYPE_CHECKING:
    from PIL import Image

_AHEAD = 64
"""Images that are fetched ahead of the one that is opened."""
_BUFFER_BYTES = 1 << 20


class RemoteFolder:
    """The images below a folder behind a URL; it is listed when it is loaded.

    Args:
        url: of the folder.
        location: of it.
    """

    def __init__(self, url: str, location: Location) -> None:
        self.url, self._location = url, location
        self._places: dict[str, int] = {}

    @cached_property
    def _files(self) -> Mapping[str, Location]:
        return self._location.files()

    def holds_images(self) -> bool:
        """Whether there is an image at any depth."""
        return any(PurePosixPath(name).suffix.lower() in extensions() for name in self._files)

    def shards(self, folder: str = "") -> str | None:
        """Returns the format of the shards in the folder, or in one below it; None where there are none."""
        below = f"{folder}/" if folder else ""
        direct = [name.removeprefix(below) for name in self._files if name.startswith(below)]
        where = self._location.child(folder) if folder else self._location
        return shards_in(where, [name for name in direct if "/" not in name]) if direct else None

    @cached_property
    def _images(self) -> list[str]:
        found = [name for name in self._files if PurePosixPath(name).suffix.lower() in extensions()]
        if not found:
            raise DataError(nothing_in(self.url, [*self._files]))
        self._places = {name: place for place, name in enumerate(found)}
        return found

    def look(self, memory: Path, verify: Verify, progress: bool) -> None:
        """Does nothing: the store is asked at every start."""

    def remembered(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns what is computed: nothing is kept."""
        return compute()

    def names(self) -> Sequence[str]:
        """Returns the names of the images relative to the folder, sorted."""
        return self._images

    def fingerprint(self, memory: object, progress: bool = False) -> str:
        """Hashes what the store says of the images: their names, sizes and versions, such as ETags."""
        whole = hashlib.blake2b(digest_size=16)
        with announced("comparing images", progress):
            for name in self._images:
                file = self._files[name]
                version = file.version() or hashlib.blake2b(file.read(), digest_size=16).hexdigest()
                whole.update(f"{name}\0{file.size()} {version}\n".encode())
        return whole.hexdigest()

    def num_bytes(self, name: str) -> int:
        """Returns the size of the file in bytes."""
        return self._files[name].size()

    def not_read(self) -> Mapping[str, int]:
        """Returns the numbers of the files that are no images, by suffix."""
        return by_suffix([name for name in self._files if name not in self._places])

    def open(self, name: str) -> "Image.Image":
        """Opens an image, and fetches those that follow it in the background."""
        from PIL import Image

        place = self._places[name]
        if place % (_AHEAD // 2) == 0:
            for following in self._images[place + 1 : place + 1 + _AHEAD]:
                file = self._files[following]
                file.prefetch([(0, file.size())])
        return Image.open(io.BytesIO(self._files[name].read()))

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file directly in the folder; None where there is none."""
        if name not in self._files:
            return None
        require_bounded(name, self._files[name].size())
        return self._files[name].read()

    def class_of(self, name: str) -> str | None:
        """Returns the first folder below the URL; None for an image directly in it."""
        return first_folder(name)


def find_remote_source(url: str, field: str | None = None, label_field: str | None = None) -> ImageSource:
    """Finds the images behind a URL; lists a folder, and reads the directory of a zip file or an index of shards.

    Args:
        url: of a folder, a zip file, or what `trainkit.data.open_dataset` takes.
        field: of shards, the column of the pictures; None: the only one.
        label_field: of shards, the column of the classes; None: the only one with a usual name.

    Raises:
        DataError: where there is neither; the message names data.path.
    """
    location = _located(url)
    if not location.is_file():
        if not location.is_folder():
            raise _missing(url)
        found = RemoteFolder(url, location)
        if found.shards():
            return Pictures(url, field, label_field)
        require_no_columns(url, field, label_field)
        if not found.holds_images():
            require_no_splits(url, found.shards)
        return found
    if kind_of_file(PurePosixPath(url).name):
        return Pictures(url, field, label_field)
    require_no_columns(url, field, label_field)
    if PurePosixPath(url).suffix.lower() in extensions():
        raise DataError(f"data.path={url} is one image; set data.path to a folder or zip file of images")
    return Zip(url, io.BufferedReader(Seekable(location), _BUFFER_BYTES))


def require_source(url: str) -> None:
    """Checks that there is a file or a folder behind a URL; lists nothing.

    Raises:
        DataError: where there is none, or the store does not answer; the message names data.path.
    """
    location = _located(url)
    if not location.is_file() and not location.is_folder():
        raise _missing(url)


def _located(url: str) -> Location:
    try:
        return locate(url)
    except DataError as error:
        raise type(error)(f"data.path={error}") from error


def _missing(url: str) -> DataError:
    return DataError(f"data.path={url} does not exist; set data.path to a folder or zip file of images, or of shards")
