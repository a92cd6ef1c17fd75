"""Matrices of GPUs in the output of nvidia-smi: a header that names the columns, and rows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from trainkit.errors import TopologyError, nearest
from trainkit.topology.discover.parts import NEARNESS

GPU = re.compile(r"GPU\d+$")
CELL = re.compile(rf"(X|NV[1-9]\d*|SOC|{'|'.join(NEARNESS)})$")
PEER_CELL = re.compile(r"(X|OK|CNS|GNS|TNS|NS|DR|U)$")

_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NAMES = re.compile(r"(GPU\d*|NIC\d+|mlx\d+_\d+|CPU|NUMA|Affinity|ID)")
_CELLS = re.compile(r"(NV[1-9]\d*|CNS|GNS|TNS|NODE|PIX|PXB|PHB|SYS|SOC|OK|NS|DR|U|X)")
_AFTER_CELLS = re.compile(r"(\d|N/A)")


@dataclass(frozen=True)
class Word:
    """A word of a text.

    Args:
        text: the word.
        line: counted from 1.
        column: counted from 1.
    """

    text: str
    line: int
    column: int


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix, and the text above it.

    Args:
        header: the names of its columns, without those of affinities.
        rows: each with its name first; words after the cells are affinities.
        above: the lines between the matrix before and this one.
    """

    header: list[Word]
    rows: list[list[Word]]
    above: list[str]

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [word.text for word in self.header]

    @property
    def is_of_peers(self) -> bool:
        """Whether it is one of `nvidia-smi topo -p2p`, by most of its cells."""
        given = [word.text for row in self.rows for word in row[1 : len(self.header) + 1]]
        return sum(bool(PEER_CELL.match(cell)) for cell in given) > sum(bool(CELL.match(cell)) for cell in given)


def lines_of(text: str) -> list[str]:
    """The lines of a text, without colours."""
    return [_ESCAPE.sub("", line) for line in text.splitlines()]


def matrices(lines: Sequence[str], where: str) -> list[Matrix]:
    """Finds the matrices of a text.

    Columns without a space between them are told apart where that is possible in one way only, as for `NIC11NIC12`.

    Args:
        lines: of the text.
        where: its name, for the message of an error.

    Returns:
        At least one.

    Raises:
        TopologyError: with line and column, where there is none, or its header is missing.
    """
    found: list[Matrix] = []
    header: list[Word] = []
    rows: list[list[Word]] = []
    begin = 0

    def close() -> None:
        nonlocal header, rows, begin
        if header and (rows or not found):
            end = header[0].line - 1
            found.append(Matrix(header=header, rows=rows, above=list(lines[begin:end])))
            begin = rows[-1][0].line if rows else end + 1
        header, rows = [], []

    for number, line in enumerate(lines, 1):
        words = [Word(m[0], number, m.start() + 1) for m in re.finditer(r"\S+", line)]
        if header and words and not words[0].text.startswith("Legend"):
            rows.append(_row(words, len(header)))
        elif header and rows:
            close()
        elif words and _begins(words, is_first=not found):
            header = _header(words, where)
    close()
    if not found:
        raise TopologyError(f"{where}:1:1: there is no matrix in it: no line starts with GPU0")
    return found


def error(where: str, word: Word, problem: str, allowed: Sequence[str] = ()) -> TopologyError:
    """An error at a word of the text `where`."""
    return TopologyError(f"{where}:{word.line}:{word.column}: {problem}.{nearest(word.text, allowed)}")


def _begins(words: list[Word], *, is_first: bool) -> bool:
    """Whether the words are a header. After a matrix, prose may begin with the name of a GPU."""
    names = [word.text for word in _split(words[0], _NAMES)]
    if not GPU.match(names[0]):
        return False
    return is_first or len(names) > 1 or (len(words) > 1 and bool(_NAMES.match(words[1].text)))


def _header(words: list[Word], where: str) -> list[Word]:
    if len(words) > 1 and (CELL.match(words[1].text) or PEER_CELL.match(words[1].text)):
        raise error(where, words[0], f"the row of {words[0].text} comes before any header that names the columns")
    every = [part for word in words for part in _split(word, _NAMES)]
    ends = [i for i, word in enumerate(every) if word.text in ("CPU", "NUMA")]
    names = every[: ends[0]] if ends else every
    twice = next((w for i, w in enumerate(names) if w.text in [other.text for other in names[:i]]), None)
    if twice is not None:
        raise error(where, twice, f"two columns are called {twice.text!r}")
    return names


def _row(words: list[Word], num_cells: int) -> list[Word]:
    """The words of a row, with cells apart; those that would be too many are left together."""
    row = words[:1]
    for word in words[1:]:
        missing = num_cells + 1 - len(row)
        parts = _split(word, _CELLS) if missing > 0 else [word]
        num_parts = sum(bool(_CELLS.fullmatch(part.text)) for part in parts)
        row += parts if len(parts) == 1 or num_parts <= missing else [word]
    return row


def _split(word: Word, known: re.Pattern[str]) -> list[Word]:
    """The parts of a word that consists of `known` ones only; of cells, an affinity may follow."""
    parts: list[Word] = []
    at = 0
    while at < len(word.text):
        match = known.match(word.text, at)
        if match is None:
            break
        parts.append(Word(match[0], word.line, word.column + at))
        at = match.end()
    rest = word.text[at:]
    if rest and known is _CELLS and parts and _AFTER_CELLS.match(rest):
        return [*parts, Word(rest, word.line, word.column + at)]
    return [word] if rest or not parts else parts


def cells(
    matrix: Matrix, where: str, kind: re.Pattern[str], allowed: Sequence[str]
) -> dict[tuple[str, str], list[Word]]:
    """The cells of each pair of parts.

    Args:
        matrix: to read.
        where: the name of the text, for the message of an error.
        kind: of its cells.
        allowed: names of these kinds, for the message.

    Returns:
        By the names of two parts, in the order of the header, their cells: that of the row of the first one before that
        of the other's.

    Raises:
        TopologyError: with line and column, for a row or cell that is wrong or missing.
    """
    names = matrix.names
    by_name: dict[str, list[Word]] = {}
    for row in matrix.rows:
        name = row[0]
        if name.text not in names:
            raise error(where, name, f"a row of {name.text!r}; the header has {', '.join(names)}", names)
        if name.text in by_name:
            raise error(where, name, f"a second row of {name.text}")
        by_name[name.text] = row[1 : len(names) + 1]
        for word in by_name[name.text]:
            if not kind.match(word.text):
                raise error(where, word, f"{word.text!r}: must be one of {', '.join(allowed)}", allowed)
        if len(row) <= len(names):
            end = Word("", row[-1].line, row[-1].column + len(row[-1].text))
            raise error(where, end, f"the row of {name.text} has {len(row) - 1} of {len(names)} cells")
    # The rows of network cards repeat the rows of GPUs, and some users paste only the latter.
    needed = names if any(not GPU.match(name) for name in by_name) else [n for n in names if GPU.match(n)]
    for word in matrix.header:
        if word.text in needed and word.text not in by_name:
            raise error(where, word, f"the column of {word.text} has no row")
    for mine, row in by_name.items():
        for other, word in zip(names, row, strict=True):
            if (word.text == "X") != (other == mine):
                raise error(where, word, f"{word.text!r} between {mine} and {other}: X marks a part's own cell")
    both = {
        (a, b): [by_name[x][names.index(y)] for x, y in ((a, b), (b, a)) if x in by_name]
        for a, b in combinations(names, 2)
    }
    return {pair: words for pair, words in both.items() if words}
