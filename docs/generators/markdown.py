"""Tables and pictures in Markdown."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context

Results = list[dict[str, Any]]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    r"""A table, in which a cell may hold any text.

    Example:
        >>> print(table(["a", "b"], [[1, "x|y"]]))
        | a | b |
        |---|---|
        | 1 | x\|y |
    """
    text = ["|".join(["", *(f" {cell} " for cell in header), ""]), "|" + "---|" * len(header)]
    text += ["|".join(["", *(f" {escaped(cell)} " for cell in row), ""]) for row in rows]
    return "\n".join(text)


def escaped(cell: object) -> str:
    """The text of a cell: a `|` would end it."""
    return str(cell).replace("|", "\\|").replace("\n", " ")


def values(results: Results) -> str:
    """Numbers and words of a result by name, one level of nesting spelled out."""
    return table(["", ""], _flat(results))


def _flat(results: Results) -> Iterable[list[Any]]:
    for result in results:
        for name, value in result.items():
            if isinstance(value, Mapping):
                yield from ([f"{name}: {key}", number(one)] for key, one in value.items() if _is_plain(one))
            elif _is_plain(value):
                yield [name, number(value)]


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def number(value: Any) -> str:
    """A number with four digits; other values as they are."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def svg(figure: Any, label: str) -> str:
    """A matplotlib figure as an element of a page.

    Args:
        figure: to draw.
        label: what it shows, for who cannot see it.
    """
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):  # letters of the page's fonts, not curves
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    element = text.getvalue().partition("<svg")[2]
    lines = [f'<svg class="figure" role="img" aria-label="{label}"', *map(str.strip, element.splitlines())]
    return " ".join(lines)  # in one line, as Markdown ends an element at an empty one
