"""The index.json of a data set in shards."""

from typing import Any

from trainkit.errors import DataError
from trainkit.json_text import MAX_BYTES, parse_json
from trainkit.storage import Location

INDEX = "index.json"


def read_index(folder: Location, name: str = INDEX) -> tuple[dict[str, Any], bytes]:
    """Reads the index of a data set.

    Args:
        folder: that it lies in.
        name: of the file.

    Returns:
        The JSON object, and its text.

    Raises:
        DataError: where it cannot be read, or is no object.
    """
    location = folder.child(name)
    if (num_bytes := location.size()) > MAX_BYTES:
        raise DataError(
            f"{location.shown} has {num_bytes:,} bytes, and at most {MAX_BYTES:,} are read; divide the data set"
        )
    content = location.read()
    try:
        index = parse_json(content)
    except ValueError as error:
        raise DataError(f"{location.shown} is no JSON ({error}); copy or write the data set again") from None
    if not isinstance(index, dict):
        raise DataError(f"{location.shown} is no index of shards; copy or write the data set again")
    return index, content


def kind_of(index: dict[str, Any]) -> str | None:
    """Returns the format that an index.json is of: `mds`, `litdata`, or None for another one."""
    if isinstance(index.get("shards"), list):
        return "mds"
    return "litdata" if isinstance(index.get("chunks"), list) and "config" in index else None
