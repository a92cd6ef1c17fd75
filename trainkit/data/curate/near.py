"""NearTexts: which texts of a large corpus nearly repeat an earlier one, with what is compared kept on disk."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from trainkit.data.minhash import FEWEST, NUM_BANDS, NUM_PERMUTATIONS, ROWS, band_keys, required
from trainkit.data.shingles import Shingles, jaccard

_FIRST_IN_BUCKET, _BEFORE_IN_BUCKET = 6, 2  # texts that one is compared with of those that agree in a band
_MOST_VERIFIED = 16  # earlier texts that one is compared with, those that agree in most bands
_LEAST_ESTIMATE = 0.36  # of the similarity, by signatures: 4.5 standard deviations below the least that is required
_AT_ONCE = 1 << 16  # signatures
_MOST_PAIRS = 1 << 25  # that are held before they are counted: 256 MB


class NearTexts:
    """Finds, for each text, an earlier one whose shingles are nearly the same. A context manager: its files go at exit.

    Candidates agree in a band of their MinHash signatures, as in an audit, and are compared exactly, so that none is
    found by mistake. A pair is missed with the probability that `audit.texts.TextIndex` states, and where more than
    eight texts agree in each of its bands. Takes 512 bytes of disk a text and 8 a word, and about 150 bytes of memory a
    text.

    Args:
        directory: for temporary files; None: the system's.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="trainkit-near-", dir=directory)
        root = Path(self._folder.name)
        self._signature_file = (root / "signatures").open("w+b")
        self._shingle_file = (root / "shingles").open("w+b")
        self._counts: list[NDArray[np.int64]] = []

    def __enter__(self) -> "NearTexts":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._signature_file.close()
        self._shingle_file.close()
        self._folder.cleanup()

    def add(self, made: Shingles, signatures: NDArray[np.uint32]) -> None:
        """Adds texts.

        Args:
            made: their shingles of `minhash.WIDTH` words.
            signatures: of them.
        """
        signatures.tofile(self._signature_file)
        made.hashes.tofile(self._shingle_file)
        self._counts.append(np.diff(made.offsets))

    def repeats(self, is_kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Finds the texts that nearly repeat an earlier one, which itself repeats none.

        Args:
            is_kept: bool [n], those that are compared.

        Returns:
            int64 [n], the number of the earlier text; -1: there is none.
        """
        counts = np.concatenate([np.empty(0, np.int64), *self._counts])
        found = np.full(len(counts), -1, np.int64)
        chosen = np.flatnonzero(is_kept & (counts >= FEWEST))
        if len(chosen) < 2:
            return found
        self._signature_file.flush()
        self._shingle_file.flush()
        signatures = np.memmap(self._signature_file, np.uint32, "r", shape=(len(counts), NUM_PERMUTATIONS))
        stored = np.memmap(self._shingle_file, np.uint64, "r")
        offsets = np.concatenate([[0], np.cumsum(counts)])

        def of(number: int) -> NDArray[np.uint64]:
            return np.unique(stored[offsets[number] : offsets[number + 1]])

        own: tuple[int, NDArray[np.uint64]] = (-1, np.empty(0, np.uint64))
        for later, earlier in self._candidates(signatures, chosen):
            if found[later] >= 0 or found[earlier] >= 0:
                continue
            if own[0] != later:
                own = later, of(later)
            theirs = of(earlier)
            fewest = min(len(own[1]), len(theirs))
            if fewest >= FEWEST and jaccard(own[1], theirs) >= required(fewest) - 1e-9:
                found[later] = earlier
        return found

    def _candidates(self, signatures: NDArray[np.uint32], chosen: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Yields (later, earlier): the later in order, and of each the earlier ones that agree in most bands first."""
        num, pairs = len(signatures), _Pairs()
        for band in range(NUM_BANDS):
            keys = np.concatenate(
                [_keys_of_band(signatures, chosen[i : i + _AT_ONCE], band) for i in range(0, len(chosen), _AT_ONCE)]
            )
            order = np.argsort(keys, kind="stable")  # numbers stay in order within a bucket
            members, keys = chosen[order], keys[order]
            begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
            first = np.repeat(begins, np.diff(begins, append=len(keys)))
            rank = np.arange(len(keys)) - first
            for shift in range(_FIRST_IN_BUCKET):
                later = np.flatnonzero(rank > shift)
                pairs.add(members[later] * num + members[first[later] + shift])
            for shift in range(1, _BEFORE_IN_BUCKET + 1):
                later = np.flatnonzero(rank - shift >= _FIRST_IN_BUCKET)
                pairs.add(members[later] * num + members[later - shift])
        different, agreeing = pairs.counted()
        later, earlier = np.divmod(different, num)
        order = np.lexsort((earlier, -agreeing, later))
        later, earlier = later[order], earlier[order]
        begins = np.flatnonzero(np.diff(later, prepend=-1))
        rank = np.arange(len(later)) - np.repeat(begins, np.diff(begins, append=len(later)))
        later, earlier = later[rank < _MOST_VERIFIED], earlier[rank < _MOST_VERIFIED]
        for start in range(0, len(later), _AT_ONCE):
            ours, theirs = later[start : start + _AT_ONCE], earlier[start : start + _AT_ONCE]
            is_likely = (signatures[ours] == signatures[theirs]).mean(axis=1) >= _LEAST_ESTIMATE
            yield from zip(ours[is_likely].tolist(), theirs[is_likely].tolist(), strict=True)


class _Pairs:
    """How often each pair was added."""

    def __init__(self) -> None:
        self._added: list[NDArray[np.int64]] = []
        self._num_added = 0
        self._different, self._counts = np.empty(0, np.int64), np.empty(0, np.int64)

    def add(self, pairs: NDArray[np.int64]) -> None:
        self._added.append(pairs)
        self._num_added += len(pairs)
        if self._num_added > _MOST_PAIRS:
            self.counted()

    def counted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The different pairs, and how often each was added."""
        new, counts = np.unique(np.concatenate([np.empty(0, np.int64), *self._added]), return_counts=True)
        self._added, self._num_added = [], 0
        if not len(self._different):
            self._different, self._counts = new, counts
        elif len(new):
            together = np.concatenate([self._different, new])
            order = np.argsort(together, kind="stable")
            counts = np.concatenate([self._counts, counts])[order]
            together = together[order]
            begins = np.flatnonzero(np.concatenate([[True], together[1:] != together[:-1]]))
            self._different, self._counts = together[begins], np.add.reduceat(counts, begins)
        return self._different, self._counts


def _keys_of_band(signatures: NDArray[np.uint32], numbers: NDArray[np.int64], band: int) -> NDArray[np.uint64]:
    whole = np.zeros((len(numbers), NUM_PERMUTATIONS), np.uint32)
    part = slice(band * ROWS, (band + 1) * ROWS)
    whole[:, part] = signatures[numbers, part]
    return band_keys(whole)[:, band]
