"""Permutation of 0 .. size-1 by a key, for many sizes at once."""

import numpy as np
from numpy.typing import NDArray

from trainkit.data.order import mix

LARGEST = 1 << 32
"""The largest size: its digits and halves of hashes are multiplied in 32 bits."""

_ROUNDS = 8
_WEYL = 0x9E3779B9  # of Philox: each round has a key of its own


def permuted(
    values: NDArray[np.int64], which: NDArray[np.int64], sizes: NDArray[np.int64], keys: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Permutes each value in its own 0 .. size-1.

    A Feistel network on two digits in place of two halves of the bits (Black and Rogaway, "Ciphers with arbitrary
    finite domains", 2002, section 5), whose product is hardly above the size: of blocks of any sizes few values have
    to walk on, where whole bits would make up to three in four walk.

    Args:
        values: [N], below the size of their permutation.
        which: [N], the number of the permutation of each value.
        sizes: [P], of the permutations, each 1 to `LARGEST`.
        keys: [P, 2], two 32-bit words for each permutation.

    Returns:
        int64 [N].
    """
    rows = np.ceil(np.sqrt(sizes)).astype(np.uint32)
    tables = np.stack([rows, -(-sizes // rows), *keys.T]).astype(np.uint32)
    result = _encrypted(values, tables[:, which])
    while len(outside := np.flatnonzero(result >= sizes[which])):
        result[outside] = _encrypted(result[outside], tables[:, which[outside]])
    return result


def _encrypted(values: NDArray[np.int64], tables: NDArray[np.uint32]) -> NDArray[np.int64]:
    rows, columns, *words = tables
    row, column = np.divmod(values.astype(np.uint32), columns)
    for number in range(0, _ROUNDS, 2):
        weyl = np.uint32(number // 2 * _WEYL & 0xFFFFFFFF)
        row = _shifted(row, column ^ (words[0] + weyl), rows)
        column = _shifted(column, row ^ (words[1] + weyl), columns)
    encrypted: NDArray[np.int64] = row.astype(np.int64) * columns + column
    return encrypted


def _shifted(digit: NDArray[np.uint32], word: NDArray[np.uint32], base: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Adds the hash of `word` to `digit`, modulo `base`: its high half scaled to the base, without a division."""
    total = digit + (((mix(word) >> np.uint32(16)) * base) >> np.uint32(16))
    return np.minimum(total, total - base)  # a difference below 0 wraps to a large number
