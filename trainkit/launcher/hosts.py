"""Hosts: the machines of a job and their processes, from --hosts or from a hostfile of DeepSpeed or Open MPI."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainkit.errors import ConfigError, nearest

# A name that begins with a dash would be an option of ssh.
_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\])")
_KEYS = ("slots", "max_slots", "max-slots")


@dataclass(frozen=True)
class Host:
    """A machine of a job.

    Args:
        name: as ssh understands it: a name of its configuration, a host name or an address, also `user@name`.
        slots: processes on it; None: one for each of its GPUs, or one without a GPU.
    """

    name: str
    slots: int | None = None

    @property
    def target(self) -> str:
        """The name as an argument of ssh, which has no brackets around an IPv6 address."""
        return self.name.replace("[", "").replace("]", "")


def parse_hosts(text: str, option: str = "--hosts") -> list[Host]:
    """Reads hosts from a list.

    Args:
        text: names with an optional number of processes, separated by commas.
        option: that holds it, for the message of an error.

    Returns:
        The hosts, in the order of the list.

    Raises:
        ConfigError: naming the entry that is wrong.

    Example:
        >>> parse_hosts("node1:8,me@node2")
        [Host(name='node1', slots=8), Host(name='me@node2', slots=None)]
    """
    entries = [entry.strip() for entry in text.split(",")]
    if not all(entries):
        raise ConfigError(f"{option}={text}: has an empty entry; type NAME:PROCESSES,NAME:PROCESSES")
    return _distinct((_entry(entry, f"{option}={text}"), f"{option}={text}") for entry in entries)


def read_hostfile(path: str | Path) -> list[Host]:
    """Reads hosts from a file, one a line.

    The lines have the form of DeepSpeed (`node1 slots=8`) or of Open MPI (`node1 slots=8 max_slots=8`, `node1:8`);
    `#` begins a comment. Open MPI adds up the slots of a name that stands twice; here that is an error.

    Args:
        path: of the file.

    Returns:
        The hosts, in the order of the file.

    Raises:
        ConfigError: where it cannot be read, or naming the line that is wrong.
    """
    try:
        lines = Path(path).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--hostfile={path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    numbered = [(f"{path}, line {i}", line.partition("#")[0].split()) for i, line in enumerate(lines, 1)]
    found = _distinct((_line(words, where), where) for where, words in numbered if words)
    if not found:
        raise ConfigError(f"--hostfile={path}: names no host; a line is: node1 slots=8")
    return found


def _line(words: list[str], where: str) -> Host:
    host = _entry(words[0], where)
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals or key not in _KEYS:
            raise ConfigError(f"{where}: {word}: must be slots=N or max_slots=N.{nearest(key, _KEYS)}")
        slots = _slots(value, word, where)
        if key == "slots":
            if host.slots is not None:
                raise ConfigError(f"{where}: {word}: {host.name} has {host.slots} slots already; give them once")
            host = Host(host.name, slots)
        elif host.slots is not None and slots < host.slots:
            raise ConfigError(f"{where}: {word}: fewer than the {host.slots} slots of {host.name}")
    return host


def _entry(text: str, where: str) -> Host:
    name, colon, slots = text, "", ""
    if not text.endswith("]"):
        before, colon, after = text.rpartition(":")
        name, slots = (before, after) if colon else (text, "")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: {text!r} is no host: type a name, name:8 for 8 processes, user@name, or [address] for IPv6"
        )
    return Host(name, _slots(slots, text, where) if colon else None)


def _slots(value: str, text: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", value) or int(value) < 1:
        raise ConfigError(f"{where}: {text}: the number of processes must be a number of at least 1")
    return int(value)


def _distinct(entries: Iterable[tuple[Host, str]]) -> list[Host]:
    found: dict[str, Host] = {}
    for host, where in entries:
        machine = host.target.rpartition("@")[2].lower()
        if machine in found:
            raise ConfigError(f"{where}: {machine} stands twice; give it once, with all its processes")
        found[machine] = host
    return list(found.values())
