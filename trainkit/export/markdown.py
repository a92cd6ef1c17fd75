"""Markdown of text that others wrote: shown as it is, whatever signs it holds."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_SIGNS = re.compile(r"([\\`*_\[\]#|~$>])")


def escaped(text: Any) -> str:
    r"""Returns text on one line, in which no sign formats.

    Example:
        >>> print(escaped("a|b <i>*c*"))
        a\|b &lt;i\>\*c\*
    """
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return _SIGNS.sub(r"\\\1", line)


def code(text: Any) -> str:
    """Returns text on one line as code."""
    line = " ".join(str(text).split()).replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{ticks}{line}{ticks}" if ticks == "`" else f"{ticks} {line} {ticks}"


def block(text: str, language: str = "") -> str:
    """Returns lines as a block of code, which no line in it ends."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def table(rows: Mapping[str, Any]) -> str:
    """Returns a table of two columns, of names and values."""
    return grid(("", ""), [(escaped(name), cell(value)) for name, value in rows.items()])


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of cells that are Markdown already."""
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0].replace("|  |", "| |").replace("|  |", "| |"), f"|{'---|' * len(head)}", *lines[1:]])


def cell(value: Any) -> str:
    """Returns a value as a cell: numbers with commas."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escaped(value)
