"""Shuffle: how the samples of an epoch are put into random order, all of them or block by block."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trainkit.data.block_order import BlockOrder
from trainkit.data.order import Order
from trainkit.data.permutation import LARGEST
from trainkit.errors import ConfigError

ShuffleBy = Literal["global", "blocks"]
OPEN_BLOCKS = 16
_BLOCK_SAMPLES = 4096
"""Samples in a block of a data set that does not say how its samples lie together."""
_MOST_BLOCKS = 1 << 16
"""Such blocks at most: an order holds an array over the blocks, and nothing that grows with the samples."""


@dataclass(frozen=True)
class Shuffle:
    """How the samples of each epoch are put into random order.

    Args:
        by: `global`: every order is as likely. `blocks`: the samples of `open_blocks` blocks are mixed at a time, see
            `BlockOrder`. A block is what the data set says lies together (its `block_sizes`, such as one for each
            shard), or else 4,096 consecutive samples, or more where there would be more than 65,536 blocks.
        open_blocks: blocks that are read at a time. A cache that holds one more reads each block once in an epoch, and
            those that are open at its start once more. More of them mix better; with no more blocks than this, all are
            mixed, which is `global`.

    Raises:
        ConfigError: for another name, or a number below 1.
    """

    by: ShuffleBy = "global"
    open_blocks: int = OPEN_BLOCKS

    def __post_init__(self) -> None:
        require_shuffle(self.by, self.open_blocks)

    def order(self, num_samples: int, seed: int, source: Any = None) -> Order | BlockOrder:
        """Returns the order of a data set.

        Args:
            num_samples: in the data set.
            seed: of the run.
            source: the data set, which may have `block_sizes`, int64 [number of blocks].

        Raises:
            ConfigError: for an empty data set, and for `block_sizes` that are not its.
        """
        if self.by == "global" or num_samples < 1:
            return Order(num_samples, seed)
        sizes = block_sizes_of(source, num_samples)
        if np.count_nonzero(sizes) <= self.open_blocks:
            return Order(num_samples, seed)
        return BlockOrder(sizes, seed, self.open_blocks)


def require_shuffle(by: str, open_blocks: int, prefix: str = "") -> None:
    """Raises ConfigError unless `by` is a way to shuffle, and `open_blocks` a number of blocks.

    Args:
        by: see `Shuffle`.
        open_blocks: see `Shuffle`.
        prefix: of the keys in the message, such as `data.`.
    """
    if by not in get_args(ShuffleBy):
        raise ConfigError(f"{prefix}shuffle={by}: must be global or blocks; set {prefix}shuffle=global")
    if isinstance(open_blocks, bool) or not isinstance(open_blocks, int) or open_blocks < 1:
        raise ConfigError(
            f"{prefix}open_blocks={open_blocks}: must be a number of blocks, at least 1; set "
            f"{prefix}open_blocks={OPEN_BLOCKS}"
        )


def shuffle_of(given: "ShuffleBy | Shuffle") -> Shuffle:
    """Returns what a name or a Shuffle means.

    Raises:
        ConfigError: for what is neither.
    """
    return given if isinstance(given, Shuffle) else Shuffle(given)


def block_sizes_of(source: Any, num_samples: int) -> NDArray[np.int64]:
    """Returns the samples in each block of a data set, int64, in the order of their indices; see `Shuffle`.

    Raises:
        ConfigError: for `block_sizes` of the data set that are no counts, or of another number of samples.
    """
    own = getattr(source, "block_sizes", None)
    if own is None:
        size = max(_BLOCK_SAMPLES, -(-num_samples // _MOST_BLOCKS))
        return np.diff(np.append(np.arange(0, num_samples, size, dtype=np.int64), num_samples))
    sizes = np.asarray(own)
    is_counts = sizes.ndim == 1 and sizes.dtype.kind in "iu" and (sizes >= 0).all() and (sizes <= LARGEST).all()
    if not is_counts or int(sizes.sum()) != num_samples:
        raise ConfigError(
            f"block_sizes of {type(source).__name__} must be the numbers of its consecutive samples that lie together, "
            f"each 0 to {LARGEST:,}, with the sum {num_samples:,}; give these, or use shuffle=global"
        )
    return sizes.astype(np.int64)
