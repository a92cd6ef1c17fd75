"""TextIndex: held-out texts, among which those that are nearly a given text are found without comparing all pairs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainkit.audit.shingles import Shingles, jaccard, shingles

WIDTH = 2  # words in a shingle
MOST = 0.8
"""Jaccard similarity of near-duplicates: about one word in eighteen differs."""
FEWEST = 7
"""Different shingles of a text that is compared: a text of fewer than eight words is like many others."""

_NUM_PERMUTATIONS, _ROWS, _SEED = 128, 4, 20
_MOST_IN_BUCKET = 64  # held-out texts that agree in a band; more are boilerplate
_MOST_VERIFIED = 16  # held-out texts that one text is compared with, those that agree in most bands


class Match(NamedTuple):
    """A pair that is nearly the same.

    Args:
        train: the place in the texts that were asked for.
        held_out: the place in the index.
        similarity: 0 to 1.
    """

    train: int
    held_out: int
    similarity: float


def required(num_shingles: int) -> float:
    """Returns the similarity that makes two texts near-duplicates, by the shingles of the one that has fewer.

    It is `MOST`, or what one changed word leaves of a short text: two shingles of each are in that one only.

    Args:
        num_shingles: different ones.

    Example:
        >>> round(required(100), 3), round(required(8), 3)
        (0.8, 0.6)
    """
    return min(MOST, (num_shingles - WIDTH) / (num_shingles + WIDTH))


class TextIndex:
    """Finds candidates by MinHash and locality-sensitive hashing, and compares their shingles exactly.

    What is found is never a mistake of the hashing; what is missed is: a pair at Jaccard 0.55 with a probability of
    5 %, at 0.7 of 0.02 %. Takes about 1 kB of memory a text.
    """

    def __init__(self) -> None:
        self._shingles: list[Shingles] = []
        self._numbers: list[NDArray[np.int64]] = []  # texts of each signature, by batch
        self._first: list[int] = []  # place of the first text of each batch
        self._signatures: list[NDArray[np.uint32]] = []
        self._num = 0
        self._same: dict[bytes, int] = {}
        self.copies: dict[int, list[int]] = {}
        """Texts of the same shingles as another, which is the one that is found."""
        self._keys = np.empty(0, np.uint64)
        self._owners = np.empty(0, np.int64)
        self._is_sorted = True

    def add(self, texts: Sequence[str]) -> None:
        """Adds texts, which get the next places."""
        made = shingles(texts, WIDTH)
        signatures = _signatures(made)
        chosen = []
        for place, signature in enumerate(signatures):
            if made.offsets[place + 1] - made.offsets[place] < FEWEST:
                continue
            first = self._same.setdefault(signature.tobytes(), self._num + place)
            if first != self._num + place:
                self.copies.setdefault(first, []).append(self._num + place)
            else:
                chosen.append(place)
        self._first.append(self._num)
        self._shingles.append(made)
        self._numbers.append(np.array(chosen, np.int64) + self._num)
        self._signatures.append(signatures[chosen])
        self._num += len(texts)
        self._is_sorted = False

    def matches(self, texts: Sequence[str]) -> list[Match]:
        """Finds near-duplicates.

        Args:
            texts: any.

        Returns:
            Those of each text, in the order of `texts`; of copies in the index the first alone.
        """
        self._sort()
        if not len(self._keys) or not len(texts):
            return []
        made = shingles(texts, WIDTH)
        found: list[Match] = []
        own: tuple[int, Any] = (-1, None)
        for place, number in self._candidates(_signatures(made)):
            if own[0] != place:
                own = place, made.of(place)
            theirs = self._of(number)
            fewest = min(len(own[1]), len(theirs))
            if fewest < FEWEST:
                continue
            similarity = jaccard(own[1], theirs)
            if similarity >= required(fewest) - 1e-9:
                found.append(Match(place, number, similarity))
        return found

    def _candidates(self, signatures: NDArray[np.uint32]) -> list[tuple[int, int]]:
        keys = _band_keys(signatures)
        left, right = np.searchsorted(self._keys, keys, "left"), np.searchsorted(self._keys, keys, "right")
        counts = np.minimum(right - left, _MOST_IN_BUCKET).ravel()
        if not counts.any():
            return []
        places = np.repeat(np.arange(len(signatures)), counts.reshape(len(signatures), -1).sum(1))
        firsts = np.repeat(left.ravel(), counts)
        within = np.arange(len(firsts)) - np.repeat(np.cumsum(counts) - counts, counts)
        pairs = places * self._num + self._owners[firsts + within]
        different, agreeing = np.unique(pairs, return_counts=True)
        places, numbers = np.divmod(different, self._num)
        order = np.lexsort((numbers, -agreeing, places))
        places, numbers = places[order], numbers[order]
        rank = np.arange(len(places)) - np.searchsorted(places, places)
        kept = rank < _MOST_VERIFIED
        return list(zip(places[kept].tolist(), numbers[kept].tolist(), strict=True))

    def _of(self, number: int) -> NDArray[np.uint64]:
        batch = int(np.searchsorted(self._first, number, "right")) - 1
        return self._shingles[batch].of(number - self._first[batch])

    def _sort(self) -> None:
        if self._is_sorted:
            return
        signatures, numbers = np.concatenate(self._signatures), np.concatenate(self._numbers)
        keys = _band_keys(signatures)
        owners = np.repeat(numbers, keys.shape[1]) if len(keys) else np.empty(0, np.int64)
        order = np.argsort(keys.ravel(), kind="stable")
        self._keys, self._owners, self._is_sorted = keys.ravel()[order], owners[order], True
        self._signatures, self._numbers = [signatures], [numbers]


def _signatures(made: Shingles) -> NDArray[np.uint32]:
    """uint32 [n, 128]; of a text without shingles any."""
    from rensa import RMinHash

    offsets = made.offsets.astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(made.hashes, offsets, _NUM_PERMUTATIONS, _SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(made), _NUM_PERMUTATIONS)


def _band_keys(signatures: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """uint64 [n, bands]: equal where two signatures agree in the rows of a band."""
    rows = np.ascontiguousarray(signatures).view(np.uint64)
    rows = rows.reshape(len(signatures), _NUM_PERMUTATIONS // _ROWS, _ROWS // 2)
    keys = rows[..., 0] * np.uint64(0x9E3779B97F4A7C15) ^ rows[..., 1] * np.uint64(0xC2B2AE3D27D4EB4F)
    keys ^= keys >> np.uint64(29)
    band = np.arange(keys.shape[1], dtype=np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    return (keys + band) * np.uint64(0xBF58476D1CE4E5B9)
