"""ImageFiles: which files are images, and what stands for their content."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from trainkit.data.files import suffix_of
from trainkit.data.grouping import Grouping

LABELS_FILE = "dataset.json"
IMAGES, OTHERS = "images", "others"
# Pillow registers these formats, but reads them only through external programs or plug-ins.
_NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})


class ImageFiles(Grouping):
    """The files of a folder of images, and others."""

    name, sorting, groups, unread = "images", "path", (IMAGES, OTHERS), OTHERS
    beside = (LABELS_FILE,)

    def __init__(self) -> None:
        self._suffixes: Counter[str] = Counter()  # of files that are not read

    def group_of(self, directory: Path, name: str) -> str:
        """Returns `images` for the suffix of a format that Pillow reads."""
        if is_image(name):
            return IMAGES
        self._suffixes[suffix_of(name)] += name != LABELS_FILE
        return OTHERS

    def content(self, path: Path) -> bytes:
        """Returns a hash of all bytes; where a file cannot be read, why."""
        try:
            if path.exists() and not path.is_file():
                return b"no file"  # such as a pipe, which would wait
            with path.open("rb") as file:
                return hashlib.file_digest(file, "blake2b").digest()
        except OSError as error:  # `open` fails too, where it is known whether that is an error
            return (error.strerror or type(error).__name__).encode()

    def facts(self) -> dict[str, Any]:
        """Returns the numbers of files that are not read, by suffix."""
        return {OTHERS: dict(+self._suffixes)}


@cache
def extensions() -> frozenset[str]:
    """Returns the suffixes, in lower case and with the dot, of the formats that Pillow decodes by itself."""
    from PIL import Image

    readable = {
        suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN and name not in _NOT_READ
    }
    return frozenset(readable)


def is_image(name: str) -> bool:
    """Whether a file is named as an image."""
    return PurePosixPath(name).suffix.lower() in extensions()


def by_suffix(names: Iterable[str]) -> Mapping[str, int]:
    """Counts files that are not read by suffix, without `LABELS_FILE`."""
    return Counter(suffix_of(name) for name in names if name != LABELS_FILE)
