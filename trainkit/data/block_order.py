"""BlockOrder: an order of samples that opens few blocks of the data set at a time."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainkit.data.order import BLOCK, Order
from trainkit.data.permutation import permuted
from trainkit.random import key_of, words

_MOST_CELLS = 1 << 18  # of a table of slots x lanes that is computed at a time
_NUM_CACHED = 2  # epochs: a batch may begin in one and end in the next


class BlockOrder:
    """An endless sequence of dataset indices: each epoch contains each index once, and reads block after block.

    A block is a run of consecutive samples, such as a shard. In each epoch the blocks are put into a random order, and
    the samples of a block into a random order that is cut into `num_open` pieces. Time is cut into as many slots as
    there are blocks; slot t holds piece i of the block t - i, for each i. So in every slot `num_open` blocks are open,
    and with the next slot one of them is closed and the next one opened: a cache of `num_open` + 1 suffices. At the
    start of an epoch the last blocks of its order are open too, and are opened again at its end.

    Within a slot the open blocks take turns: block j of the epoch has the positions that are j modulo `num_open`. So
    every batch is made of all open blocks in equal parts, and a rank, whose positions are its number modulo the number
    of ranks, reads blocks of its own where num_open and the batch size are multiples of that number. A block that is
    larger than its turns also takes those that smaller ones leave, evenly spread over the slot.

    An index is computed from its position alone, from tables of the blocks: nothing is stored of the samples.

    Args:
        block_sizes: int64 [number of blocks], samples in each, in the order of their indices.
        seed: the seed of the run.
        num_open: blocks that are open at a time, fewer than there are that hold a sample.

    Example:
        >>> order = BlockOrder(np.array([3, 3, 3, 3]), seed=0, num_open=2)
        >>> sorted(order.indices(np.arange(12)).tolist()) == list(range(12))
        True
    """

    shuffle, ahead = True, BLOCK

    def __init__(self, block_sizes: NDArray[np.int64], seed: int, num_open: int) -> None:
        assert 0 < num_open < np.count_nonzero(block_sizes), "then every block may be open: use Order"
        starts = np.cumsum(block_sizes) - block_sizes
        filled = block_sizes > 0
        self._sizes, self._starts = block_sizes[filled], starts[filled]
        self.seed, self.num_open, self.num_samples = seed, num_open, int(block_sizes.sum())
        self._blocks = Order(len(self._sizes), key_of(seed, "order of blocks"))
        self._epochs: dict[int, _Epoch] = {}

    def indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Computes the dataset indices at positions.

        Args:
            positions: int64 [N], of any order.

        Returns:
            int64 [N].
        """
        epochs, offsets = np.divmod(positions, self.num_samples)
        found = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            chosen = np.flatnonzero(epochs == epoch)
            for first in range(0, len(chosen), BLOCK):
                part = chosen[first : first + BLOCK]
                found[part] = self._in_epoch(epoch, offsets[part])
        return found

    def _epoch(self, number: int) -> "_Epoch":
        if number not in self._epochs:
            blocks = self._blocks.epoch(number)
            while len(self._epochs) >= _NUM_CACHED:
                del self._epochs[min(self._epochs)]
            self._epochs[number] = _Epoch(blocks, self._sizes[blocks], self.num_open)
        return self._epochs[number]

    def _in_epoch(self, number: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        epoch = self._epoch(number)
        slots, which = np.unique(epoch.slots_of(offsets), return_inverse=True)
        if len(slots) * self.num_open > _MOST_CELLS and len(offsets) > 1:
            halves = np.array_split(offsets, 2)
            return np.concatenate([self._in_epoch(number, half) for half in halves])
        pieces = epoch.pieces(slots)
        begins = epoch.slot_starts[slots]
        phases = (number * self.num_samples + begins) % self.num_open
        turns = _turns(phases, epoch.slot_starts[slots + 1] - begins, self.num_open)
        in_slot = offsets - begins[which]
        cells = which * self.num_open + (phases[which] + in_slot) % self.num_open
        cells, places = _placed(cells, in_slot // self.num_open, turns.ravel(), pieces.lengths.ravel())
        blocks = epoch.blocks[pieces.ranks.ravel()]
        key = key_of(self.seed, "order within blocks", number)
        keys = words(key, torch.from_numpy(blocks), 2).numpy()
        places = permuted(pieces.begins.ravel()[cells] + places, cells, self._sizes[blocks], keys)
        found: NDArray[np.int64] = self._starts[blocks][cells] + places
        return found


@dataclass(frozen=True)
class _Pieces:
    """What slots hold: [slots, lanes] each.

    Args:
        ranks: of the blocks in the order of the epoch.
        begins: of the piece in the permuted block.
        lengths: samples in the piece.
    """

    ranks: NDArray[np.int64]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]


class _Epoch:
    """The blocks of an epoch and its slots.

    Args:
        blocks: in the order of the epoch.
        sizes: of these.
        num_open: pieces of each.
    """

    def __init__(self, blocks: NDArray[np.int64], sizes: NDArray[np.int64], num_open: int) -> None:
        self.blocks, self._num_open = blocks, num_open
        self._whole, self._rest = np.divmod(sizes, num_open)  # the first `rest` pieces have one sample more
        num_blocks = len(blocks)
        # Lengths of the slots, by their differences: a block is in `num_open` of them, in `rest` with one sample more.
        steps = np.zeros(num_blocks + num_open + 1, np.int64)
        steps[:num_blocks] += self._whole + (self._rest > 0)
        steps[num_open : num_open + num_blocks] -= self._whole
        steps -= np.bincount(np.arange(num_blocks) + self._rest, weights=self._rest > 0, minlength=len(steps)).astype(
            np.int64
        )
        lengths = np.cumsum(steps)
        lengths[: num_open + 1] += lengths[num_blocks:]  # the last blocks go on in the first slots
        self.slot_starts = np.concatenate([[0], np.cumsum(lengths[:num_blocks])])

    def slots_of(self, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the slot of each offset into the epoch."""
        return np.searchsorted(self.slot_starts, offsets, side="right") - 1

    def pieces(self, slots: NDArray[np.int64]) -> _Pieces:
        """Returns the pieces in slots, by lane."""
        number = (slots[:, None] - np.arange(self._num_open)) % self._num_open
        ranks = (slots[:, None] - number) % len(self.blocks)
        whole, rest = self._whole[ranks], self._rest[ranks]
        return _Pieces(ranks, number * whole + np.minimum(number, rest), whole + (number < rest))


def _turns(phases: NDArray[np.int64], lengths: NDArray[np.int64], num_open: int) -> NDArray[np.int64]:
    """Counts the positions of each lane in slots that begin at `phases` modulo `num_open`: [slots, num_open]."""
    firsts = (np.arange(num_open) - phases[:, None]) % num_open
    turns: NDArray[np.int64] = np.maximum(0, -(-(lengths[:, None] - firsts) // num_open))
    return turns


def _placed(
    cells: NDArray[np.int64], rows: NDArray[np.int64], turns: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Finds the piece, and the place in it, of each position.

    Turns that a piece is too short for go to the samples that others have too many, in order; in a slot there are as
    many of the one as of the other.

    Args:
        cells: [N], slot and lane of each position, as one number.
        rows: [N], the turns of the lane before it.
        turns: of each cell.
        lengths: samples of the piece of each cell.

    Returns:
        Cells of the pieces and places in them, [N] each.
    """
    spare, missing = np.maximum(turns - lengths, 0), np.maximum(lengths - turns, 0)
    if not spare.any():
        return cells, rows
    spare_here, turns_here = spare[cells], turns[cells]
    before = rows * spare_here // turns_here
    is_spare = (rows + 1) * spare_here // turns_here > before
    rank = (np.cumsum(spare) - spare)[cells] + before
    ends = np.cumsum(missing)
    to = np.minimum(np.searchsorted(ends, rank, side="right"), len(ends) - 1)
    return np.where(is_spare, to, cells), np.where(is_spare, turns[to] + rank - (ends - missing)[to], rows - before)
