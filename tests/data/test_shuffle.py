"""data.shuffle: the same batches on any ranks and workers, after any resume; from Runtime.batches to the recipes."""

import hashlib
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

import trainkit
from trainkit.data import Images, Shuffle, Text
from trainkit.data.block_order import BlockOrder
from trainkit.data.loader import Fetcher
from trainkit.data.order import Order
from trainkit.data.unpaired import UnpairedImages
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks

BATCH, STEPS, SEED = 16, 40, 3
SIZES = np.array([7, 0, 30, 12, 25, 3, 41, 18, 9, 33, 2, 20])
NUM = int(SIZES.sum())


class Shards(Dataset[int]):
    """Samples that lie in shards of unequal sizes."""

    block_sizes = SIZES
    fingerprint = "shards"

    def __len__(self):
        return NUM

    def __getitem__(self, index):
        return index * 10


BLOCKS = Shuffle("blocks", open_blocks=4)


def _hashes(start=0, num_steps=STEPS, num_workers=0):
    """The indices and data of this rank by position."""
    runtime = trainkit.Runtime(seed=SEED, device="cpu")
    rows = {}
    for batch in runtime.batches(
        Shards(), batch_size=BATCH, start=start, num_steps=num_steps, num_workers=num_workers, shuffle=BLOCKS
    ):
        for position, index, value in zip(
            batch.positions.tolist(), batch.indices.tolist(), batch.data.tolist(), strict=True
        ):
            assert value == index * 10
            rows[position] = index
    runtime.close()
    return rows


def _whole(world_size, *arguments):
    ranks = run_ranks(_hashes, world_size, *arguments) if world_size > 1 else [_hashes(*arguments)]
    return {position: index for rank in ranks for position, index in rank.items()}


@pytest.fixture(scope="module")
def alone():
    return _whole(1)


def test_batches_are_those_of_the_order(alone):
    assert [alone[position] for position in range(STEPS * BATCH)] == BLOCKS.order(NUM, SEED, Shards()).indices(
        np.arange(STEPS * BATCH)
    ).tolist()
    assert sorted(alone[position] for position in range(NUM, 2 * NUM)) == [*range(NUM)]


@pytest.mark.parametrize("world_size", [2, 4])
def test_equal_on_any_number_of_ranks(alone, world_size):
    assert _whole(world_size) == alone


@pytest.mark.filterwarnings("ignore:This DataLoader will create 5")
@pytest.mark.parametrize("num_workers", [2, 5])
def test_equal_with_any_number_of_workers(alone, num_workers):
    assert _whole(1, 0, STEPS, num_workers) == alone


def test_a_resume_at_17_on_two_ranks_goes_on(alone):
    resumed = _whole(2, 17 * BATCH, STEPS - 17)
    assert resumed == {position: index for position, index in alone.items() if position >= 17 * BATCH}


def test_eight_ranks_share_the_batch_of_one(alone):
    """Eight ranks by their fetchers, without processes."""
    digest, expected = hashlib.sha256(), hashlib.sha256()
    orders = [BLOCKS.order(NUM, SEED, Shards()) for _ in range(8)]
    shared: dict[str, Any] = {"batch_size": BATCH, "world_size": 8, "collate": None}
    fetchers = [Fetcher(Shards(), order, rank=rank, **shared) for rank, order in enumerate(orders)]
    for step in range(STEPS):
        position, found = step * BATCH, dict[int, int]()
        for batch in (fetcher[position] for fetcher in fetchers):
            found |= dict(zip(batch.positions.tolist(), batch.indices.tolist(), strict=True))
        digest.update(str(sorted(found.items())).encode())
        expected.update(str([(p, alone[p]) for p in range(position, position + BATCH)]).encode())
    assert digest.digest() == expected.digest()


def test_few_blocks_are_shuffled_as_a_whole():
    assert isinstance(Shuffle("blocks", 11).order(NUM, 0, Shards()), Order), "11 blocks hold samples"
    assert isinstance(Shuffle("blocks", 10).order(NUM, 0, Shards()), BlockOrder)
    assert isinstance(Shuffle("blocks").order(4096 * 16, 0), Order)
    assert isinstance(Shuffle("blocks").order(4096 * 16 + 1, 0), BlockOrder)


class Endless(IterableDataset[int]):
    def __iter__(self):
        yield 1


class Wrong(Shards):
    block_sizes = SIZES[1:]


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (torch.arange(9), {"shuffle": "block"}, r"shuffle=block: must be global or blocks"),
        (torch.arange(9), {"shuffle": "blocks", "weights": torch.ones(9)}, "shuffle=blocks and weights are both given"),
        (
            DataLoader(Subset(Shards(), range(9)), sampler=[1, 2]),
            {"shuffle": "blocks"},
            "shuffle=blocks and order .* both given",
        ),
        (Endless(), {"shuffle": "blocks"}, "shuffle=blocks needs a data set with samples to index, and Endless"),
        (Wrong(), {"shuffle": "blocks"}, f"block_sizes of Wrong must be the numbers .* with the sum {NUM}"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(source, arguments, message):
    runtime = trainkit.Runtime(device="cpu")
    with pytest.raises(ConfigError, match=message):
        runtime.batches(source, batch_size=2, **arguments)
    runtime.close()


@pytest.mark.parametrize("open_blocks", [0, -1, 2.5, True])
def test_open_blocks_is_a_number_of_blocks(open_blocks):
    with pytest.raises(
        ConfigError, match=r"^open_blocks=.*: must be a number of blocks, at least 1; set open_blocks=16"
    ):
        Shuffle("blocks", open_blocks)
    for specification in (Text, Images):
        with pytest.raises(ConfigError, match=r"^data\.open_blocks="):
            specification(open_blocks=open_blocks)


def _other_blocks():
    runtime = trainkit.Runtime(seed=SEED, device="cpu")
    source = Shards()
    source.block_sizes = SIZES if runtime.ranks.rank == 0 else SIZES[::-1]
    try:
        runtime.batches(source, batch_size=4, shuffle="blocks")
    except ConfigError as error:
        return str(error)
    finally:
        runtime.close()


def test_ranks_that_differ_in_their_blocks_are_told():
    for message in run_ranks(_other_blocks, 2):
        assert "block_sizes" in message


def test_pairs_of_sets_have_an_order_of_their_own():
    with pytest.raises(ConfigError, match=r"data\.images\.shuffle=blocks: each set has an order of its own"):
        UnpairedImages(images=Images(shuffle="blocks"))


def test_a_specification_hands_its_order_to_the_run(tmp_path):
    (tmp_path / "text.jsonl").write_text(
        "".join(f'{{"text": "document {number} of words that differ {number * 7}"}}\n' for number in range(12_000))
    )
    loaded = Text(path=tmp_path, vocab_size=300, sequence_length=8, shuffle="blocks", open_blocks=2, cache_dir=tmp_path)
    datasets = loaded.load(progress=False)
    assert datasets.shuffle == Shuffle("blocks", 2)
    runtime = trainkit.Runtime(seed=SEED, device="cpu")
    batches = runtime.batches(datasets.train, batch_size=64, shuffle=datasets.shuffle)
    seen = np.concatenate([batch.indices.numpy() for batch in islice(batches, 20)])
    runtime.close()
    assert len(datasets.train) > 4 * 4096 and len(np.unique(seen // 4096)) == 2
