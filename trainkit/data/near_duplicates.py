"""Near-duplicates: images whose perceptual hashes differ in few bits, found among many without comparing all pairs."""

from collections.abc import Iterator, Sequence
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
    """Groups hashes around representatives, from which all others of a group differ in few bits.

    A group is a star and no chain: what only looks like a member, and not like the representative, is not in it. So one
    image of each group can stand for it: the representatives, and the images in no group, all differ in more bits from
    one another. Groups in which every pair is near would not have that property, as their representatives may be near.
    Representatives are those with most neighbours; of equal ones the first.

    Two hashes that differ in at most k bits agree in one of k + 1 bands of bits at least, so only hashes that share
    a band are compared: exact, and far fewer than all pairs.

    Args:
        hashes: uint64 [n].
        most_bits: that differ from the representative.

    Returns:
        Indices, of groups with at least two: first the representative, then the others in order. Groups are in the
        order of their smallest index.

    Example:
        >>> groups(np.array([0, 7, 2**63, 2**60 - 1], np.uint64), most_bits=3)
        [[0, 1, 2]]
        >>> groups(np.array([1, 3, 7, 15], np.uint64), most_bits=1)  # a chain
        [[1, 0, 2]]
    """
    different, first, inverse, nums = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    starts, near = _neighbours(len(different), [*_near(different, most_bits)])
    num_before = np.concatenate([[0], np.cumsum(nums[near])])[starts]
    order = np.lexsort((first, -nums - np.diff(num_before)))
    star = np.full(len(different), -1)  # of each hash: its representative
    for one in order[np.diff(starts)[order] > 0].tolist():
        if star[one] < 0:
            others = near[starts[one] : starts[one + 1]]
            star[others[star[others] < 0]] = one
            star[one] = one
    members = np.where(star < 0, np.arange(len(star)), star)[inverse]
    order = np.argsort(members, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(members[order])) + 1)
    found = sorted((part for part in parts if len(part) > 1), key=lambda part: part[0])
    chosen = [int(first[members[part[0]]]) for part in found]
    return [[one, *(i for i in part.tolist() if i != one)] for one, part in zip(chosen, found, strict=True)]


def _neighbours(num: int, pairs: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Where the neighbours of each of `num` hashes begin, [num + 1], in all neighbours together."""
    both = np.concatenate([np.empty((2, 0), np.int32), *pairs, *(pair[::-1] for pair in pairs)], axis=1)
    order = np.argsort(both[0], kind="stable")
    starts = np.searchsorted(both[0], np.arange(num + 1), sorter=order)
    return starts, both[1][order]


def _near(hashes: NDArray[np.uint64], most_bits: int) -> Iterator[NDArray[np.int32]]:
    """Yields int32 [2, m]: the pairs of different hashes that are near, each once."""
    edges = [64 * band // (most_bits + 1) for band in range(most_bits + 2)]
    masks = [np.uint64(((1 << (high - low)) - 1) << low) for low, high in pairwise(edges)]
    for number, mask in enumerate(masks):
        band = hashes & mask
        order = np.argsort(band, kind="stable").astype(np.int32)
        for bucket in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for start in range(0, len(bucket) - 1, _ROWS):
                rows, others = bucket[start : start + _ROWS], bucket[start:]
                bits = hashes[rows][:, None] ^ hashes[others][None]
                left, right = np.nonzero(np.bitwise_count(bits) <= most_bits)
                is_pair = left < right
                if not is_pair.any():
                    continue
                left, right = left[is_pair], right[is_pair]
                for earlier in masks[:number]:  # a pair that shares one of these was found there
                    is_new = bits[left, right] & earlier != 0
                    left, right = left[is_new], right[is_new]
                yield np.stack([rows[left], others[right]])


def _imagehash() -> Any:
    try:
        import imagehash
    except ImportError as error:
        raise DataError(
            "near-duplicates are found by ImageHash, which is not installed; type: pip install 'trainkit[images]'"
        ) from error
    return imagehash
