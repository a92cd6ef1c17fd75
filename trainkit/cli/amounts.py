"""Parses sizes and counts from the command line: 25MB, 1KB..64MB, 1..128."""

import re
from collections.abc import Callable

from trainkit.errors import ConfigError
from trainkit.memory.size import num_bytes

__all__ = ["counts", "num_bytes", "sizes"]


def sizes(text: str, name: str) -> list[int]:
    """Parses sizes, separated by commas or as a range that doubles.

    Args:
        text: such as `1KB,25MB` or `1KB..64MB`.
        name: of the option, for the message of an error.

    Returns:
        Bytes of each.

    Raises:
        ConfigError: for other text.

    Example:
        >>> sizes("1KB..4KB", "--sizes"), sizes("1KB,25MB", "--sizes")
        ([1000, 2000, 4000], [1000, 25000000])
    """
    return _several(text, name, lambda word: num_bytes(word, name))


def counts(text: str, name: str) -> list[int]:
    """Parses integers, separated by commas or as a range that doubles and includes its end.

    Args:
        text: such as `1,2,6` or `1..128`.
        name: of the option, for the message of an error.

    Returns:
        The numbers, all at least 1.

    Raises:
        ConfigError: for other text.

    Example:
        >>> counts("1..12", "--nodes"), counts("1,2,6", "--nodes"), counts("8", "--nodes")
        ([1, 2, 4, 8, 12], [1, 2, 6], [8])
    """

    def count(word: str) -> int:
        if not re.fullmatch(r"\s*[0-9]{1,6}\s*", word) or int(word) < 1:
            raise ConfigError(f"{name}={text!r}: must be integers of at least 1, such as 1..128, 1,2,4 or 8")
        return int(word)

    return _several(text, name, count)


def _several(text: str, name: str, read: Callable[[str], int]) -> list[int]:
    if ".." not in text:
        return [read(word) for word in text.split(",")]
    first, last = (read(word) for word in text.split("..", 1))
    if last < first:
        raise ConfigError(f"{name}={text!r}: the end of the range is below its start")
    found = [first]
    while 2 * found[-1] < last:
        found.append(2 * found[-1])
    return found if last == first else [*found, last]
