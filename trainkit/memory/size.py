"""Size: a number of bytes as a user writes it."""

import re

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
