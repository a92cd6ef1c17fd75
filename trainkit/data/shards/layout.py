"""Layout: how an array of items lies in shards; all of it is arithmetic, so a billion items need no memory."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

PIECE_BYTES = 1 << 16
"""Of a shard that has a checksum of its own: what must be read to check a smaller range."""
SUM_BYTES = 8


@dataclass(frozen=True)
class Layout:
    """An array of items of one shape in files of one size, the last one shorter.

    A shard is nothing but its items, one after the other, in little-endian numbers: `NAME-000000.bin` and so on. Beside
    them, `NAME.sums` has 8 bytes (XXH3, 64 bits) for every 65,536 bytes of each shard, and after those of a shard 8 for
    these sums themselves, which is the checksum of the shard.

    Args:
        name: of the array.
        dtype: of a number, as NumPy writes it, such as `<u2`.
        shape: of an item.
        num_items: of all shards together.
        items_per_shard: but for the last one.

    Example:
        >>> layout = Layout("train", "<u2", (), 100, 40)
        >>> layout.num_shards, layout.items_of(2), layout.file(2)
        (3, 20, 'train-000002.bin')
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_items: int
    items_per_shard: int

    @property
    def item_bytes(self) -> int:
        """The bytes of an item."""
        return np.dtype(self.dtype).itemsize * prod(self.shape)

    @property
    def num_shards(self) -> int:
        """The number of files."""
        return -(-self.num_items // self.items_per_shard)

    def items_of(self, shard: int) -> int:
        """The number of items in a shard."""
        return min(self.items_per_shard, self.num_items - shard * self.items_per_shard)

    def bytes_of(self, shard: int) -> int:
        """The size of a shard."""
        return self.items_of(shard) * self.item_bytes

    def file(self, shard: int) -> str:
        """The name of the file of a shard."""
        return f"{self.name}-{shard:06}.bin"

    @property
    def sums_file(self) -> str:
        """The name of the file of the checksums."""
        return f"{self.name}.sums"

    def sums_range(self, shard: int) -> tuple[int, int]:
        """The bytes of the checksums of a shard in their file."""
        start = shard * (_num_pieces(self.items_per_shard * self.item_bytes) + 1) * SUM_BYTES
        return start, start + (_num_pieces(self.bytes_of(shard)) + 1) * SUM_BYTES

    @property
    def sums_bytes(self) -> int:
        """The size of the file of the checksums."""
        return self.sums_range(self.num_shards - 1)[1] if self.num_shards else 0

    def beginnings(self) -> NDArray[np.int64]:
        """The first item of each shard, and at the end the number of all."""
        return np.append(np.arange(self.num_shards) * self.items_per_shard, self.num_items).astype(np.int64)

    def read(self, content: Any) -> NDArray[Any]:
        """Takes bytes for items, [N, *shape]."""
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape)


def items_per_shard(item_bytes: int, shard_bytes: int) -> int:
    """How many items a shard of about `shard_bytes` holds: at least one, and where they are small, whole pieces.

    Example:
        >>> items_per_shard(2, 1_000_000), items_per_shard(3_000_000, 1_000_000)
        (491520, 1)
    """
    is_whole = PIECE_BYTES % item_bytes == 0 and shard_bytes > PIECE_BYTES
    whole = shard_bytes // PIECE_BYTES * PIECE_BYTES if is_whole else shard_bytes
    return max(1, whole // item_bytes)


def sums_of(content: memoryview) -> NDArray[np.uint64]:
    """The checksums of a shard: of each of its pieces, and of these.

    Args:
        content: all bytes of the shard.
    """
    starts = range(0, len(content), PIECE_BYTES)
    sums = np.array([xxhash.xxh3_64_intdigest(content[a : a + PIECE_BYTES]) for a in starts], "<u8")
    return np.append(sums, own_sum(sums)).astype("<u8")


def own_sum(sums: NDArray[np.uint64]) -> np.uint64:
    """The checksum of checksums."""
    return np.uint64(xxhash.xxh3_64_intdigest(sums.tobytes()))


def _num_pieces(num_bytes: int) -> int:
    return -(-num_bytes // PIECE_BYTES)
