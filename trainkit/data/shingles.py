"""Shingles: texts as sets of neighbouring words, hashed many texts at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_CHARS = 1 << 18
"""Of a text that are compared: what one text takes in memory is bounded by it."""

_BASE, _FIRST, _SECOND = (np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_IS_LETTER = np.array([chr(byte).isalnum() if byte < 128 else True for byte in range(256)])
_IS_SPACE = np.array([chr(byte).isspace() if byte < 128 else False for byte in range(256)])
# UTF-8's first bytes of Chinese and Japanese characters, which have no spaces between words: each is a word.
_IS_IDEOGRAPH = np.array([0xE3 <= byte <= 0xE9 for byte in range(256)])
_PUNCTUATION = ((0xE2, 0x80), (0xE2, 0x81), (0xE3, 0x80))  # quotes, dashes and spaces beyond ASCII, of three bytes
_APOSTROPHES = (0x98, 0x99)  # the third byte


@dataclass(frozen=True)
class Shingles:
    """Hashes of texts' shingles, one text after the other.

    Args:
        hashes: uint64 [num_shingles].
        offsets: int64 [num_texts + 1]: those of text i are `hashes[offsets[i] : offsets[i + 1]]`.
    """

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, index: int) -> NDArray[np.uint64]:
        """Returns the different shingles of one text, sorted."""
        return np.unique(self.hashes[self.offsets[index] : self.offsets[index + 1]])


def shingles(texts: Sequence[str], width: int) -> Shingles:
    """Hashes each `width` words that follow one another.

    A word is the letters and digits between two spaces, in lower case; punctuation does not count. A Chinese or
    Japanese character is a word.

    Args:
        texts: of which the first `MOST_CHARS` characters count.
        width: words in a shingle.

    Returns:
        As many shingles of a text as it has words, less `width` - 1.

    Example:
        >>> one, other = shingles(["A cat sat.", "the Cat - sat"], 2).of(0), shingles(["the Cat - sat"], 2).of(0)
        >>> len(one), len(other), len(np.intersect1d(one, other))
        (2, 2, 1)
    """
    words = _words(texts)
    hashes = words.hashes.copy()
    length = len(hashes) - width + 1
    if length <= 0:
        return Shingles(np.empty(0, np.uint64), np.zeros(len(texts) + 1, np.int64))
    whole = hashes[:length]
    for shift in range(1, width):
        whole = whole * _BASE + hashes[shift : shift + length]
    counts = np.diff(words.offsets)
    # The last width - 1 words of a text begin no shingle of its own.
    text_of = np.repeat(np.arange(len(texts)), counts)[:length]
    is_within = np.arange(length) + width <= words.offsets[1:][text_of]
    offsets = np.concatenate([[0], np.cumsum(np.maximum(0, counts - width + 1))]).astype(np.int64)
    return Shingles(_mixed(whole[is_within]), offsets)


def jaccard(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> float:
    """Computes the share of the different hashes of both that are in both.

    Args:
        first: sorted, each once.
        second: sorted, each once.

    Returns:
        0 to 1; 0 where both are empty.

    Example:
        >>> jaccard(np.array([1, 2, 3], np.uint64), np.array([2, 3, 4], np.uint64))
        0.5
    """
    both = len(np.intersect1d(first, second, assume_unique=True))
    return both / max(1, len(first) + len(second) - both)


def _words(texts: Sequence[str]) -> Shingles:
    parts = [text[:MOST_CHARS].lower().encode(errors="surrogatepass") for text in texts]
    joined = np.frombuffer(b"\n".join(parts) + b"\n\n\n", np.uint8)
    starts = np.cumsum([0, *(len(part) + 1 for part in parts)])
    is_letter, is_space = _IS_LETTER[joined], _IS_SPACE[joined]
    for first, second in _PUNCTUATION:
        at = np.flatnonzero((joined[:-2] == first) & (joined[1:-1] == second))
        for shift in range(3):
            is_letter[at + shift] = False
        is_space[at[~np.isin(joined[at + 2], _APOSTROPHES)]] = True
    inside = np.flatnonzero(is_letter)
    if not len(inside):
        return Shingles(np.empty(0, np.uint64), np.zeros(len(texts) + 1, np.int64))
    ideographs = np.flatnonzero(_IS_IDEOGRAPH[joined] & is_letter)
    is_alone = np.zeros(len(joined), np.bool_)  # a word begins here, whatever is before it
    is_alone[ideographs] = True
    is_alone[ideographs + 3] = True
    part_of = np.cumsum(is_space | is_alone)[inside]
    begins = np.flatnonzero(np.diff(part_of, prepend=-1))  # in `inside`, of each word
    lengths = np.diff(begins, append=len(inside))
    place = np.arange(len(inside)) - np.repeat(begins, lengths)
    powers = np.multiply.accumulate(np.full(int(lengths.max()), _BASE, np.uint64))
    values = (joined[inside].astype(np.uint64) + np.uint64(1)) * powers[place]
    return Shingles(_mixed(np.add.reduceat(values, begins)), np.searchsorted(inside[begins], starts))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spreads what differs over all bits (the last steps of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))
