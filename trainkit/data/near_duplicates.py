"""Near-duplicates: images whose perceptual hashes differ in few bits, found among many without comparing all pairs."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.errors import DataError

MOST_BITS = 4  # of 64 that differ
_ROWS = 256  # compared with a whole bucket at once: bounds the memory


def perceptual_hash(pixels: NDArray[np.uint8]) -> int:
    """Hashes what an image looks like (ImageHash's phash: signs of low frequencies).

    Args:
        pixels: uint8 [C, R, R], C 1 or 3.

    Returns:
        64 bits.
    """
    from PIL import Image

    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    bits = _imagehash().phash(image).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def require_imagehash() -> None:
    """Raises DataError, which says what to type, unless ImageHash is installed."""
    _imagehash()


def groups(hashes: NDArray[np.uint64], most_bits: int = MOST_BITS) -> list[list[int]]:
    """Groups hashes that differ in few bits, directly or through others of the group.

    Two hashes that differ in at most k bits agree in one of k + 1 bands of bits at least, so only hashes that share
    a band are compared: exact, and far fewer than all pairs.

    Args:
        hashes: uint64 [n].
        most_bits: that differ between two neighbours.

    Returns:
        Indices, of groups with at least two, in order.

    Example:
        >>> groups(np.array([0, 7, 2**63, 2**60 - 1], np.uint64), most_bits=3)
        [[0, 1, 2]]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    different, inverse = np.unique(hashes, return_inverse=True)
    pairs = [*_near(different, most_bits), np.empty((2, 0), np.int64)]
    first, second = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(len(different),) * 2)
    component = connected_components(graph, directed=False)[1][inverse]
    order = np.argsort(component, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return sorted(part.tolist() for part in parts if len(part) > 1)


def _near(hashes: NDArray[np.uint64], most_bits: int) -> Iterator[NDArray[np.int64]]:
    """Yields int64 [2, m]: the pairs of different hashes that are near, some of them more than once."""
    edges = [64 * band // (most_bits + 1) for band in range(most_bits + 2)]
    for low, high in pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for start in range(0, len(bucket) - 1, _ROWS):
                rows, others = bucket[start : start + _ROWS], bucket[start:]
                near = np.bitwise_count(hashes[rows][:, None] ^ hashes[others][None]) <= most_bits
                left, right = np.nonzero(near)
                is_pair = left < right
                yield np.stack([rows[left[is_pair]], others[right[is_pair]]])


def _imagehash() -> Any:
    try:
        import imagehash
    except ImportError as error:
        raise DataError(
            "near-duplicates are found by ImageHash, which is not installed; type: pip install 'trainkit[images]'"
        ) from error
    return imagehash
