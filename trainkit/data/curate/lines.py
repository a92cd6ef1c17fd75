"""Lines: what documents have in common, such as menus, licences and greetings, counted in bounded memory."""

import re

import numpy as np
import xxhash
from numpy.typing import NDArray

MIN_CHARS = 20
"""Characters of a line that counts: shorter ones are headings and names."""

_END = re.compile(r"\n|(?<=[.!?])\s+")  # paragraphs of a text file are one line, so the end of a sentence ends it, too
_MOST_COUNTED = 1 << 24  # 200 MB
_MERGED_AT = 1 << 20


def lines_of(text: str) -> list[str]:
    """Divides a document at the ends of lines and of sentences.

    Args:
        text: of it.

    Returns:
        Those of at least `MIN_CHARS` characters, without the white space around and with single spaces inside.

    Example:
        >>> lines_of("Terms and conditions apply.  Short. All rights  are reserved.")
        ['Terms and conditions apply.', 'All rights are reserved.']
    """
    lines = (" ".join(line.split()) for line in _END.split(text))
    return [line for line in lines if len(line) >= MIN_CHARS]


def line_key(line: str) -> int:
    """Returns 64 bits of hash."""
    return xxhash.xxh3_64_intdigest(line.encode(errors="surrogatepass"))


def line_keys(text: str) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes the lines of a document.

    Args:
        text: of it.

    Returns:
        Of each line its key and its number of characters.
    """
    lines = lines_of(text)
    keys = np.fromiter((line_key(line) for line in lines), np.uint64, len(lines))
    return keys, np.fromiter((len(line) for line in lines), np.int64, len(lines))


class LineCounts:
    """In how many documents each line is.

    Where there are too many different lines to keep, those that have been seen least are forgotten, as in lossy
    counting (Manku and Motwani, VLDB 2002, section 4.2). A count is then too low by at most `most_missed`, the sum of
    what was forgotten each time; otherwise it is exact.

    Args:
        most: different lines to keep, at 12 bytes each and as many while they are merged.
    """

    def __init__(self, most: int = _MOST_COUNTED) -> None:
        self._most = most
        self._keys, self._counts = np.empty(0, np.uint64), np.empty(0, np.uint32)
        self._pending: list[NDArray[np.uint64]] = []
        self._num_pending = 0
        self.most_missed = 0
        """Documents by which a count may be too low."""

    def add(self, keys: NDArray[np.uint64]) -> None:
        """Counts lines, those of a document once."""
        self._pending.append(keys)
        self._num_pending += len(keys)
        if self._num_pending >= min(_MERGED_AT, self._most):
            self._merge()

    def of(self, keys: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Returns the count of each line, 0 for one that was not seen or is forgotten."""
        self._merge()
        if not len(self._keys):
            return np.zeros(len(keys), np.uint32)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[places] == keys, self._counts[places], np.uint32(0))

    def most_frequent(self, num: int, at_least: int) -> list[tuple[int, int]]:
        """Returns (key, count) of the lines in most documents, the first ones first.

        Args:
            num: how many.
            at_least: documents.
        """
        self._merge()
        chosen = np.flatnonzero(self._counts >= at_least)
        chosen = chosen[np.lexsort((self._keys[chosen], -self._counts[chosen].astype(np.int64)))][:num]
        return [(int(self._keys[place]), int(self._counts[place])) for place in chosen]

    def _merge(self) -> None:
        if not self._pending:
            return
        new, counts = np.unique(np.concatenate(self._pending), return_counts=True)
        self._pending, self._num_pending = [], 0
        keys = np.concatenate([self._keys, new])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        counts = np.concatenate([self._counts, counts.astype(np.uint32)])[order]
        begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        self._keys, self._counts = keys[begins], np.add.reduceat(counts, begins).astype(np.uint32)
        forgotten = 0
        while len(self._keys) > self._most:
            forgotten += 1
            kept = self._counts > forgotten
            self._keys, self._counts = self._keys[kept], self._counts[kept]
        self.most_missed += forgotten
