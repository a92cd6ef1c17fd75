"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


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
