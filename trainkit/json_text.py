"""JSON that others wrote: bounded in length, and what is nested too deeply is an error as any other."""

import hashlib
import json
from pathlib import Path
from typing import Any

from trainkit.whole_file import write_text

MAX_BYTES = 1 << 28


def parse_json(content: str | bytes | bytearray) -> Any:
    """Parses JSON.

    Args:
        content: all of it.

    Raises:
        ValueError: it is no JSON, or nested too deeply.

    Example:
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: it is nested too deeply
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """Reads a JSON file in UTF-8.

    Args:
        path: of the file.
        max_bytes: its largest size.

    Raises:
        ValueError: it is no JSON, nested too deeply, or too large.
        OSError: it cannot be read.
    """
    return parse_json(read_bounded(path, max_bytes).decode("utf-8"))


def read_bounded(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Reads a whole file.

    Args:
        path: of the file.
        max_bytes: its largest size.

    Raises:
        ValueError: it is larger.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:  # one that grows meanwhile, or has no size, is bounded too
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes >> 20} MiB")
    return content


def digest(value: Any) -> str:
    """A digest of a value that JSON can hold, whatever the order of its keys.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, in one rename.

    Args:
        path: of the file.
        value: that JSON can hold; a number that is not finite is an error.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
