"""Parses sizes and counts from the command line: 25MB, 1KB..64MB, 1..128."""

import re
from collections.abc import Callable

from trainkit.errors import ConfigError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def num_bytes(text: str, name: str) -> int:
    """Parses a size in bytes.

    Args:
        text: a number, alone or with a unit: KB, MB, GB (powers of 1000), KiB, MiB or GiB (powers of 1024).
        name: of the option, for the message of an error.

    Returns:
        Bytes, rounded.

    Raises:
        ConfigError: for other text, and sizes below 1 byte or from 1 PiB on.

    Example:
        >>> num_bytes("25MB", "--bytes"), num_bytes("1.5 MiB", "--bytes"), num_bytes("1e6", "--bytes")
        (25000000, 1572864, 1000000)
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    unit = (found.group(2) if found else "").upper() or "B"
    try:
        amount = float(found.group(1)) * UNITS[unit] if found else 0.0
    except (ValueError, KeyError):
        amount = 0.0
    if not 1 <= amount < 2**50:
        raise ConfigError(
            f"{name}={text!r}: must be a number of at least 1, alone or with B, KB, MB, GB (powers of 1000), KiB, MiB "
            f"or GiB (of 1024), such as 25MB, 100MiB or 1e6"
        )
    return round(amount)


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
