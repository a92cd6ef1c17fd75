"""PCIe's access control services (ACS): whether a switch sends messages between its GPUs up to the host bridge."""

from collections.abc import Iterable
from pathlib import Path

_FIRST = 0x100  # of the extended capabilities, which follow what is readable without privileges
_ACS = 0x000D
_CONTROL = 6  # in the capability
_REQUEST_REDIRECT = 1 << 2
_MOST_CAPABILITIES = 64


def is_on(ports: Iterable[Path]) -> bool | None:
    """Whether a port above a GPU redirects the requests of its GPU.

    Args:
        ports: PCI devices in sysfs, whose `config` the kernel shows in full only to root.

    Returns:
        True where one does; False where none does; None where none could be read.
    """
    found = [redirects(config) for port in ports if (config := _read(port / "config")) is not None]
    known = [answer for answer in found if answer is not None]
    return any(known) if known else None


def redirects(config: bytes) -> bool | None:
    """Whether a port redirects requests, by its configuration space.

    Args:
        config: of the port, up to 4096 bytes.

    Returns:
        False also for a port without ACS; None where the extended capabilities are missing.

    Example:
        >>> redirects(bytes(64)) is None
        True
    """
    if len(config) < _FIRST + 4:
        return None
    offset = _FIRST
    for _ in range(_MOST_CAPABILITIES):
        head = int.from_bytes(config[offset : offset + 4], "little")
        if head & 0xFFFF == _ACS:
            control = int.from_bytes(config[offset + _CONTROL : offset + _CONTROL + 2], "little")
            return bool(control & _REQUEST_REDIRECT)
        following = head >> 20
        if following < _FIRST or following + 8 > len(config):
            return False
        offset = following
    return False


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return None
