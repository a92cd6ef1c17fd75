"""NearTexts: which texts of a large corpus nearly repeat an earlier one, with what is compared kept on disk."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from trainkit.data.minhash import FEWEST, NUM_BANDS, NUM_PERMUTATIONS, ROWS, band_keys, required
from trainkit.data.shingles import Shingles, jaccard

_FIRST_IN_BUCKET, _BEFORE_IN_BUCKET = 8, 4  # texts that one is compared with of those that agree in a band
_MOST_VERIFIED = 16  # earlier texts that one is compared with, those that agree in most bands
_AT_ONCE = 1 << 17  # signatures


class NearTexts:
    """Finds, for each text, an earlier one whose shingles are nearly the same. A context manager: its files go at exit.

    Candidates agree in a band of their MinHash signatures, as in an audit, and are compared exactly, so that none is
    found by mistake. A pair is missed with the probability that `audit.texts.TextIndex` states, and where more than a
    dozen texts agree in each of its bands. Takes 512 bytes of disk a text and 8 a word, and about 150 bytes of memory a
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
        num = len(signatures)
        different, agreeing = np.empty(0, np.int64), np.empty(0, np.int64)  # pairs, and bands in which they agree
        for band in range(NUM_BANDS):
            keys = np.concatenate(
                [_keys_of_band(signatures, chosen[i : i + _AT_ONCE], band) for i in range(0, len(chosen), _AT_ONCE)]
            )
            order = np.argsort(keys, kind="stable")  # numbers stay in order within a bucket
            members, keys = chosen[order], keys[order]
            first = np.searchsorted(keys, keys)  # place of the first of the bucket
            rank = np.arange(len(keys)) - first
            pairs = [different]
            for shift in range(_FIRST_IN_BUCKET):
                later = np.flatnonzero(rank > shift)
                pairs.append(members[later] * num + members[first[later] + shift])
            for shift in range(1, _BEFORE_IN_BUCKET + 1):
                later = np.flatnonzero(rank - shift >= _FIRST_IN_BUCKET)
                pairs.append(members[later] * num + members[later - shift])
            different, agreeing = _counted(np.concatenate(pairs), agreeing)
        later, earlier = np.divmod(different, num)
        order = np.lexsort((earlier, -agreeing, later))
        later, earlier = later[order], earlier[order]
        kept = np.arange(len(later)) - np.searchsorted(later, later) < _MOST_VERIFIED
        yield from zip(later[kept].tolist(), earlier[kept].tolist(), strict=True)


def _keys_of_band(signatures: NDArray[np.uint32], numbers: NDArray[np.int64], band: int) -> NDArray[np.uint64]:
    whole = np.zeros((len(numbers), NUM_PERMUTATIONS), np.uint32)
    part = slice(band * ROWS, (band + 1) * ROWS)
    whole[:, part] = signatures[numbers, part]
    return band_keys(whole)[:, band]


def _counted(pairs: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different pairs, and how often each is there; the first ones of `pairs` count as `counts` says."""
    different, of = np.unique(pairs, return_inverse=True)
    weights = np.concatenate([counts, np.ones(len(pairs) - len(counts), np.int64)])
    return different, np.bincount(of, weights, minlength=len(different)).astype(np.int64)
