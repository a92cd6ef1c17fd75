"""Sources of images: a folder, a zip file, or shards."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Protocol

from trainkit.data.file_look import Verify
from trainkit.data.files import counted
from trainkit.data.folder_scan import holds, scan
from trainkit.data.formats.opening import kind_of_file, shards_in
from trainkit.data.formats.pictures import Pictures
from trainkit.data.formats.splits import HELD_OUT_SPLITS
from trainkit.data.image_formats import IMAGES, OTHERS, ImageFiles, by_suffix, extensions, is_image
from trainkit.data.known_files import known_files
from trainkit.data.listing import Listing, Names
from trainkit.data.parallel import in_order
from trainkit.data.progress import track
from trainkit.errors import DataError
from trainkit.storage import locate

if TYPE_CHECKING:
    from PIL import Image

MAX_READ_BYTES = 1 << 30
"""Of a file beside the images, such as dataset.json."""


class ImageSource(Protocol):
    """Named images in a fixed order."""

    def names(self) -> Sequence[str]:
        """Returns the names that `open` takes, sorted."""

    def fingerprint(self, memory: Path, progress: bool = False) -> str:
        """Hashes the content of the images.

        Args:
            memory: a directory to cache slow results in.
            progress: whether to show a progress bar.
        """

    def num_bytes(self, name: str) -> int:
        """Returns the size of the file in bytes, decompressed."""

    def look(self, memory: Path, verify: Verify, progress: bool) -> None:
        """Looks at what has changed since the last look, which makes `names` and `fingerprint` fast.

        Args:
            memory: a directory that remembers what was seen.
            verify: `full`: all files are read again.
            progress: whether to show progress bars.
        """

    def remembered(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns what follows from the files alone: of `compute`, or what it returned at an earlier start.

        Args:
            name: of the value; it contains everything beside the files that decides it.
            compute: returns the value, JSON-serializable.
        """

    def not_read(self) -> Mapping[str, int]:
        """Returns the numbers of other files by suffix, which cannot be read as images, without `LABELS_FILE`."""

    def open(self, name: str) -> "Image.Image":
        """Opens an image, which may not be decoded yet. Raises what Pillow raises for a file that it cannot read."""

    def read(self, name: str) -> bytes | None:
        """Returns the content of another file beside the images; None where there is none."""

    def class_of(self, name: str) -> str | None:
        """Returns the class of an image by its name, such as its folder; None where the name has none."""


class Folder:
    """The images below a directory, without hidden files and directories.

    Args:
        path: the directory.

    Raises:
        DataError: where it contains no image.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listing: Listing | None = None
        # Only up to the first image: a large folder is listed when it is loaded.
        if not holds(path, lambda file: is_image(file.name)):
            raise DataError(nothing_in(path, [name for run in scan(path, "path") for name in run.names]))

    def look(self, memory: Path, verify: Verify, progress: bool) -> None:
        """Looks at what has changed since the last look; see `known_files`."""
        self._listing = known_files(self.path, memory, ImageFiles, verify, progress)

    def remembered(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns what is kept beside the list of files; without `look`, what is computed."""
        return compute() if self._listing is None else self._listing.remembered(name, compute)

    def names(self) -> Sequence[str]:
        """Returns the paths of the images relative to the folder, sorted."""
        if self._listing is not None:
            return Names(self._listing.group(IMAGES))
        return [name for name in self._scanned() if is_image(name)]

    def fingerprint(self, memory: Path, progress: bool = False) -> str:
        """Hashes every byte, of files that have changed since the last look."""
        if self._listing is not None:
            return self._listing.remembered("fingerprint", self._digest)  # type: ignore[no-any-return]
        whole, content = hashlib.blake2b(digest_size=16), ImageFiles().content
        names = self.names()
        for digest in track(
            in_order(lambda name: content(self.path / name), names), "comparing images", len(names), progress
        ):
            whole.update(digest)
        return whole.hexdigest()

    def _digest(self) -> str:
        assert self._listing is not None
        whole = hashlib.blake2b(digest_size=16)
        self._listing.group(IMAGES).contents.add_to(whole)
        return whole.hexdigest()

    def _scanned(self) -> Iterator[str]:
        for run in scan(self.path, ImageFiles.sorting):
            yield from (f"{run.directory}/{name}" if run.directory else name for name in run.names)

    def num_bytes(self, name: str) -> int:
        """Returns the size of the file in bytes."""
        return (self.path / name).stat().st_size

    def not_read(self) -> Mapping[str, int]:
        """Returns the numbers of files that are no images, by suffix."""
        if self._listing is not None:
            return self._listing.facts[OTHERS]  # type: ignore[no-any-return]
        return by_suffix(name for name in self._scanned() if not is_image(name))

    def open(self, name: str) -> "Image.Image":
        """Opens an image; it is decoded when its pixels are read."""
        from PIL import Image

        return Image.open(self.path / name)

    def content(self, name: str) -> bytes:
        """Returns the bytes of the file of an image."""
        return (self.path / name).read_bytes()

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file directly in the folder; None where there is none."""
        path = self.path / name
        if not path.is_file():
            return None
        require_bounded(name, path.stat().st_size)
        return path.read_bytes()

    def class_of(self, name: str) -> str | None:
        """Returns the first folder below `path`; None for an image directly in it."""
        return first_folder(name)


class Zip:
    """The images in a zip file, without hidden members.

    Args:
        path: the zip file, or its URL.
        opened: the file, where it is behind a URL.

    Raises:
        DataError: where it cannot be read or contains no image.
    """

    def __init__(self, path: str | Path, opened: IO[bytes] | None = None) -> None:
        self.path = path
        try:
            self._file = zipfile.ZipFile(opened or path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(
                f"data.path={path} is not a zip file that can be read ({error}); "
                f"set data.path to a folder or zip file of images"
            ) from error
        members = [info for info in self._file.infolist() if not info.is_dir() and not _is_hidden(info.filename)]
        # A zip file of a folder has the folder itself in each name.
        tops = {info.filename.partition("/")[0] if "/" in info.filename else "" for info in members}
        top = f"{tops.pop()}/" if len(tops) == 1 and "" not in tops else ""
        named = {info.filename.removeprefix(top): info for info in members}
        self._others = {n: i for n, i in named.items() if PurePosixPath(n).suffix.lower() not in extensions()}
        self._members = {name: info for name, info in named.items() if name not in self._others}
        if not self._members:
            raise DataError(nothing_in(path, [*self._others]))

    def names(self) -> Sequence[str]:
        """Returns the names of the members that are images, sorted."""
        return sorted(self._members)

    def fingerprint(self, memory: Path, progress: bool = False) -> str:
        """Hashes the names, sizes and checksums in the zip file's directory."""
        members = [self._members[name] for name in self.names()]
        kept = [(info.filename, info.file_size, info.CRC) for info in members]
        return hashlib.blake2b(repr(kept).encode(), digest_size=16).hexdigest()

    def num_bytes(self, name: str) -> int:
        """Returns the decompressed size of the member in bytes."""
        return self._members[name].file_size

    def look(self, memory: Path, verify: Verify, progress: bool) -> None:
        """Does nothing: the directory of the file says what is in it."""

    def remembered(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns what is computed."""
        return compute()

    def not_read(self) -> Mapping[str, int]:
        """Returns the numbers of members that are no images, by suffix."""
        return by_suffix(self._others)

    def open(self, name: str) -> "Image.Image":
        """Opens an image; it is decoded when its pixels are read."""
        from PIL import Image

        return Image.open(io.BytesIO(self.content(name)))

    def content(self, name: str) -> bytes:
        """Returns the bytes of the member of an image, decompressed."""
        return self._file.read(self._members[name].filename)

    def read(self, name: str) -> bytes | None:
        """Returns the content of a member beside the folders of images; None where there is none."""
        if name not in self._others:
            return None
        require_bounded(name, self._others[name].file_size)
        return self._file.read(self._others[name].filename)

    def class_of(self, name: str) -> str | None:
        """Returns the first folder in the zip file, below one that all members are in; None for an image in none."""
        return first_folder(name)


def require_bounded(name: str, num_bytes: int) -> None:
    """Raises DataError for a file that would fill the memory: a zip file of megabytes may hold one of gigabytes."""
    if num_bytes > MAX_READ_BYTES:
        raise DataError(f"{name} of data.path has {num_bytes:,} bytes, and at most {MAX_READ_BYTES:,} are read")


def find_source(path: Path, field: str | None = None, label_field: str | None = None) -> "Folder | Zip | Pictures":
    """Finds the images at a path.

    Args:
        path: a folder, a zip file, or what `trainkit.data.open_dataset` takes.
        field: of shards, the column of the pictures; None: the only one.
        label_field: of shards, the column of the classes; None: the only one with a usual name.

    Returns:
        The source of the images.

    Raises:
        DataError: naming data.path, what was found there and what to set.
    """
    if not path.exists():
        raise DataError(
            f"data.path={path} does not exist; set data.path to a folder or zip file of images, "
            f"or leave it out for the built-in letters"
        )
    if (path.is_dir() and shards_in(locate(path))) or (path.is_file() and kind_of_file(path.name)):
        return Pictures(path, field, label_field)
    require_no_columns(path, field, label_field)
    if path.is_dir():
        try:
            return Folder(path)
        except DataError:
            require_no_splits(str(path), lambda split: (path / split).is_dir() and shards_in(locate(path / split)))
            raise
    if path.suffix.lower() in extensions():
        raise DataError(f"data.path={path} is one image; set data.path to a folder or zip file of images")
    return Zip(path)


def require_no_columns(path: str | Path, field: str | None, label_field: str | None) -> None:
    """Raises DataError where columns are given of what has none."""
    if field or label_field:
        raise DataError(
            f"data.field={field}, data.label_field={label_field}: data.path={path} has no columns; set null"
        )


def require_no_splits(shown: str, holds_shards: Callable[[str], object]) -> None:
    """Raises DataError, naming the subfolders, where a folder holds data sets by split: images are split by a hash.

    Args:
        shown: the folder.
        holds_shards: whether a subfolder is a data set in shards.
    """
    if found := [split for split in ("train", *HELD_OUT_SPLITS) if holds_shards(split)]:
        listed = ", ".join(f"{shown}/{split}" for split in found)
        raise DataError(f"data.path={shown} holds data sets, one a split: set data.path to one of {listed}")


def first_folder(name: str) -> str | None:
    """Returns the first folder in a name; None where there is none."""
    parts = PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 else None


def _is_hidden(member: str) -> bool:
    # macOS stores metadata of the files in __MACOSX, under their own names.
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(member).parts)


def nothing_in(path: str | Path, names: Sequence[str]) -> str:
    """Returns the message for a place without an image, where files of these names are."""
    if not names:
        return f"data.path={path} is empty; put images there, or set data.path to another folder or zip file"
    found = counted(names)
    hint = "; for a zip file, set data.path to the file itself" if ".zip" in found else ""
    return (
        f"data.path={path} holds no image: found {found}{hint}; set data.path to a folder or zip file with .png, .jpg, "
        f".webp or another of the {len(extensions())} suffixes that Pillow reads"
    )
