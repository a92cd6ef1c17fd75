"""What a path or a URL stands for."""

import re
from pathlib import Path

from trainkit.errors import StorageError
from trainkit.storage.local import LocalLocation
from trainkit.storage.location import Location

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(path: str | Path) -> bool:
    """Whether `path` is a URL, such as s3://bucket/folder, and no path of this machine.

    Example:
        >>> is_url("s3://bucket/texts"), is_url("/data/texts")
        (True, False)
    """
    return isinstance(path, str) and _URL.match(path) is not None


def locate(path: str | Path) -> Location:
    """Returns the location that a path or a URL names; nothing is read.

    Args:
        path: of a file or a folder; ~ is the home directory.

    Raises:
        StorageError: for a URL of a kind that is not known.
    """
    if not is_url(path):
        return LocalLocation(Path(path).expanduser())
    raise StorageError(f"{path}: must be a path of this machine")
