"""MinHash: short signatures of sets of shingles, which agree in as many numbers as the sets are similar."""

import numpy as np
from numpy.typing import NDArray

from trainkit.data.shingles import Shingles

NUM_PERMUTATIONS, ROWS = 128, 4
"""Numbers of a signature, and of one of its bands."""
NUM_BANDS = NUM_PERMUTATIONS // ROWS
WIDTH = 2
"""Words in a shingle."""
MOST = 0.8
"""Jaccard similarity of near-duplicates: about one word in eighteen differs."""
FEWEST = 7
"""Different shingles of a text that is compared: a text of fewer than eight words is like many others."""

_SEED = 20


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


def signatures(made: Shingles) -> NDArray[np.uint32]:
    """Returns uint32 [n, NUM_PERMUTATIONS]; of a text without shingles any."""
    from rensa import RMinHash

    offsets = made.offsets.astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(made.hashes, offsets, NUM_PERMUTATIONS, _SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(made), NUM_PERMUTATIONS)


def band_keys(of: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Hashes the bands of signatures, for locality-sensitive hashing.

    Args:
        of: uint32 [n, NUM_PERMUTATIONS].

    Returns:
        uint64 [n, NUM_BANDS]: equal where two signatures agree in the rows of a band.
    """
    rows = np.ascontiguousarray(of).view(np.uint64)
    rows = rows.reshape(len(of), NUM_BANDS, ROWS // 2)
    keys = rows[..., 0] * np.uint64(0x9E3779B97F4A7C15) ^ rows[..., 1] * np.uint64(0xC2B2AE3D27D4EB4F)
    keys ^= keys >> np.uint64(29)
    band = np.arange(keys.shape[1], dtype=np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    return (keys + band) * np.uint64(0xBF58476D1CE4E5B9)
