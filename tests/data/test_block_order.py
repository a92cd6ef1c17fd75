"""The order that reads block after block: each sample once an epoch, few blocks open, the same from any position."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.data import block_order, order, permutation
from trainkit.data.block_order import BlockOrder
from trainkit.data.permutation import permuted
from trainkit.data.shuffle import block_sizes_of

DEEP = 10**10

unequal = st.lists(st.integers(0, 60), min_size=3, max_size=40)
equal = st.builds(lambda number, size: [size] * number, st.integers(3, 40), st.integers(1, 90))
one_large = st.builds(lambda sizes, large: [*sizes, large], unequal, st.integers(500, 3000))


def _made(sizes, seed, window):
    sizes = np.array(sizes, np.int64)
    return BlockOrder(sizes, seed, 1 + window % (np.count_nonzero(sizes) - 1))


blocks = (unequal | equal | one_large).filter(lambda sizes: np.count_nonzero(sizes) > 1)


@settings(max_examples=80, deadline=None)
@given(sizes=blocks, seed=st.integers(0, 9), window=st.integers(0, 50), epoch=st.sampled_from([0, 1, 5, 10**7]))
def test_each_epoch_holds_each_sample_once(sizes, seed, window, epoch):
    made = _made(sizes, seed, window)
    num = made.num_samples
    drawn = made.indices(np.arange(epoch * num, (epoch + 1) * num))
    assert np.array_equal(np.sort(drawn), np.arange(sum(sizes)))


@settings(max_examples=40, deadline=None)
@given(sizes=blocks, window=st.integers(0, 50), places=st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_any_positions_alone_give_what_a_pass_gives(sizes, window, places):
    made = _made(sizes, 3, window)
    first = DEEP // made.num_samples * made.num_samples
    passed = made.indices(np.arange(first, first + 3 * made.num_samples))
    chosen = np.array(places) % len(passed)
    assert np.array_equal(_made(sizes, 3, window).indices(first + chosen), passed[chosen])


@pytest.mark.parametrize("sizes", [[40] * 30, [*range(20, 80, 2)], [5, 300, 40] * 10])
def test_few_blocks_are_open_and_each_is_read_in_one_go(sizes):
    """Fetches of an LRU cache of `num_open` + 1 are counted: one for each block, two for those at the seam."""
    num_open = 6
    made = BlockOrder(np.array(sizes), 1, num_open)
    drawn = made.indices(np.arange(2 * sum(sizes), 3 * sum(sizes)))
    of = np.repeat(np.arange(len(sizes)), sizes)[drawn]
    bounds = made._epoch(2).slot_starts
    for begin, end in pairwise(bounds):
        assert len(set(of[begin:end].tolist())) <= num_open
    cache: dict[int, None] = {}
    fetched = 0
    for block in of.tolist():
        fetched += block not in cache
        cache.pop(block, None)
        cache[block] = None
        if len(cache) > num_open + 1:
            del cache[next(iter(cache))]
    assert fetched <= len(sizes) + num_open - 1


def test_each_rank_reads_blocks_of_its_own():
    """So many hosts together read each block once, where equal blocks, open blocks and batches divide by the ranks."""
    sizes, ranks = np.full(64, 32), 4
    made = BlockOrder(sizes, 0, 8)
    positions = np.arange(made.num_samples)
    of = made.indices(positions) // 32
    readers = [len(set((positions[of == block] % ranks).tolist())) for block in range(64)]
    assert readers.count(1) >= 64 - 7, "all but the blocks that are open when the epoch starts"
    assert max(readers) <= 2


def test_epochs_blocks_and_seeds_differ():
    sizes = np.full(50, 20)
    of = [BlockOrder(sizes, seed, 5).indices(np.arange(3000)) for seed in (0, 1)]
    first, second = of[0][:1000], of[0][1000:2000]
    assert not np.array_equal(first, second) and not np.array_equal(first, of[1][:1000])
    inside = [first[first // 20 == block] % 20 for block in range(50)]
    assert len({tuple(each) for each in inside}) == 50


def test_the_first_sample_of_an_epoch_is_uniform():
    num_epochs, sizes = 2000, np.array([3, 7, 1, 9])
    firsts = BlockOrder(sizes, 5, 2).indices(np.arange(num_epochs) * 20)
    # A block is first where it is the first or the last of its epoch, alone in its lane or not: only within a block is
    # each sample as likely as another.
    for begin, size in zip(np.cumsum(sizes) - sizes, sizes, strict=True):
        counts = np.bincount(firsts, minlength=20)[begin : begin + size]
        expected = counts.sum() / size
        assert ((counts - expected) ** 2 / expected).sum() < 28, "0.999 quantile of chi-squared with 9 degrees: 27.9"


def test_permutations_of_small_sizes_are_nearly_uniform():
    """All 24 orders of 4 samples come, in 24,000 blocks, as often as chance has it."""
    num, size = 24_000, 4
    keys = np.random.default_rng(0).integers(0, 2**32, (num, 2))
    which = np.repeat(np.arange(num), size)
    drawn = permuted(np.tile(np.arange(size), num), which, np.full(num, size), keys).reshape(num, size)
    counts = np.unique(drawn @ np.array([64, 16, 4, 1]), return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 60, "chi-squared with 23 degrees of freedom: 0.9999 quantile 55.9"


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 5000) | st.integers(2**32 - 9, 2**32), key=st.integers(0, 2**32 - 1))
def test_a_permutation_stays_below_its_size(size, key):
    values = np.arange(min(size, 5000))
    drawn = permuted(values, np.zeros_like(values), np.array([size]), np.array([[key, key ^ 5]]))
    assert len(np.unique(drawn)) == len(values) and drawn.min() >= 0 and drawn.max() < size


def test_a_deep_position_costs_what_the_first_one_does(monkeypatch):
    """Hashed words are counted: 4096 blocks of 4096 samples, where no value has to walk on."""
    counted = [0]

    def counting(words):
        counted[0] += words.size
        return mix(words)

    mix = order.mix
    for module in (order, permutation):
        monkeypatch.setattr(module, "mix", counting)
    costs = []
    for start in (17, 17 + DEEP, 17 + 10**15):
        counted[0] = 0
        BlockOrder(np.full(4096, 4096), 0, 16).indices(np.arange(start, start + 100))
        costs.append(counted[0])
    assert costs[0] == costs[1] == costs[2] == 8 * 4096 + 8 * 100


MEMORY = """
import resource, tracemalloc
import numpy as np
from trainkit.data.shuffle import Shuffle
tracemalloc.start()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
order = Shuffle("blocks").order(10**9, seed=0)
for start in (0, 10**9 - 2**14, 10**10):
    order.indices(np.arange(start, start + 2**14))
print(tracemalloc.get_traced_memory()[1] / 1e6, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
"""


def test_a_billion_samples_need_a_few_megabytes():
    shown = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True).stdout.split()
    traced_mb, resident_mb = map(float, shown)
    assert traced_mb < 30 and resident_mb < 60, "of the 200 MB that a rank may take"


def test_blocks_of_a_set_that_does_not_tell_are_few():
    assert block_sizes_of([], 10_000).tolist() == [4096, 4096, 1808]
    sizes = block_sizes_of([], 10**9 + 1)
    assert len(sizes) <= 1 << 16 and sizes.sum() == 10**9 + 1


def test_tables_of_many_lanes_stay_small(monkeypatch):
    monkeypatch.setattr(block_order, "_MOST_CELLS", 1 << 13)
    sizes = np.full(600, 2)
    drawn = BlockOrder(sizes, 0, 400).indices(np.arange(1200))
    assert np.array_equal(np.sort(drawn), np.arange(1200))
