"""Bech32 (BIP 173): how age writes its keys, a prefix and bytes with a checksum."""

_CHARS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_NUM_CHECKED = 6


def decode(text: str) -> tuple[str, bytes]:
    """Decodes a key.

    Args:
        text: in upper or in lower case.

    Returns:
        Its prefix in lower case, and its bytes.

    Raises:
        ValueError: the text is no Bech32, or a character of it is wrong. The message does not repeat the text.
    """
    prefix, _, data = text.lower().rpartition("1")
    if text not in (text.lower(), text.upper()) or not prefix or len(data) < _NUM_CHECKED or {*data} - {*_CHARS}:
        raise ValueError("not Bech32")
    values = [_CHARS.index(char) for char in data]
    if _checksum(prefix, values) != 1:
        raise ValueError("a character of it is wrong or missing")
    return prefix, _in_bytes(values[:-_NUM_CHECKED])


def encode(prefix: str, content: bytes) -> str:
    """Encodes bytes.

    Args:
        prefix: in lower case.
        content: the bytes.

    Returns:
        The text, in lower case.

    Example:
        >>> decode(encode("age", bytes(32))) == ("age", bytes(32))
        True
    """
    number, num_bits = int.from_bytes(content, "big"), 8 * len(content)
    padding = -num_bits % 5
    values = [(number << padding) >> shift & 31 for shift in range(num_bits + padding - 5, -1, -5)]
    left = _checksum(prefix, [*values, *[0] * _NUM_CHECKED]) ^ 1
    values += [left >> 5 * (_NUM_CHECKED - 1 - i) & 31 for i in range(_NUM_CHECKED)]
    return f"{prefix}1{''.join(_CHARS[value] for value in values)}"


def _in_bytes(values: list[int]) -> bytes:
    number = 0
    for value in values:
        number = number << 5 | value
    padding = 5 * len(values) % 8
    if padding > 4 or number & ((1 << padding) - 1):
        raise ValueError("its length is wrong")
    return (number >> padding).to_bytes(5 * len(values) // 8, "big")


def _checksum(prefix: str, values: list[int]) -> int:
    expanded = [ord(char) >> 5 for char in prefix] + [0] + [ord(char) & 31 for char in prefix]
    found = 1
    for value in expanded + values:
        top = found >> 25
        found = (found & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate(_GENERATORS):
            found ^= generator if top >> i & 1 else 0
    return found
