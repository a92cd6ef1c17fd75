"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """
    >>> print(table(["a", "b"], [[1, "x|y"]]))
    | a | b |
    |---|---|
    | 1 | x\\|y |
    """
    lines = [header, ["---"] * len(header)] if header else []
    text = ["|".join(["", *(f" {cell} " for cell in lines[0]), ""]), "|" + "|".join(lines[1]) + "|"]
    text += ["|".join(["", *(f" {escaped(cell)} " for cell in row), ""]) for row in rows]
    return "\n".join(text)


def escaped(cell: object) -> str:
    """The text of a cell: a `|` would end it."""
    return str(cell).replace("|", "\\|").replace("\n", " ")
