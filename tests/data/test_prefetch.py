"""A data set with `prefetch` is told of the batches that its process will be asked for, in order, and of no others."""

import numpy as np
import pytest
import torch

from trainkit.data import loader
from trainkit.data.loader import Fetcher
from trainkit.data.order import Order


class Announced:
    def __init__(self, num: int) -> None:
        self.num, self.told = num, list[list[int]]()

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        return {"x": torch.tensor(index)}

    def __getitems__(self, indices):
        return {"x": torch.tensor(indices)}

    def prefetch(self, indices):
        self.told.append(indices.tolist())


@pytest.mark.parametrize("num_workers", [1, 3, 70])
def test_each_worker_is_told_of_its_own_batches(num_workers):
    source = Announced(100_000)
    fetcher = Fetcher(source, Order(len(source), 3), batch_size=8, rank=1, world_size=2, collate=None)
    fetcher = fetcher.in_turn(num_workers)
    stride, asked = 8 * num_workers, []
    for number in range(200):
        batch = fetcher[16 + number * stride]
        asked.append(batch.indices.tolist())
        assert batch.data["x"].tolist() == asked[-1]
        assert source.told[: len(asked)] == asked, "those that are asked for were announced"
        assert len(source.told) <= number + 5
    assert source.told[:200] == asked


def test_a_pass_over_held_out_samples_ends_within_them():
    source = Announced(50)
    fetcher = Fetcher(source, Order(50, 3, shuffle=False), batch_size=8, rank=0, world_size=1, collate=None)
    seen = [fetcher[position].data["x"].tolist() for position in range(0, 50, 8)]
    assert np.concatenate(seen).tolist() == list(range(50))
    assert source.told == seen[:6]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_more_is_announced_until_enough_is_coming(world_size):
    class Store(Announced):
        coming = loader._COMING_BYTES

        def prefetch(self, indices):
            super().prefetch(indices)
            return self.coming

    source = Store(100_000)
    fetcher = Fetcher(source, Order(len(source), 3), batch_size=64, rank=0, world_size=world_size, collate=None)
    fetcher[0]
    assert len(source.told) == 1 + loader._ANNOUNCED, "the next ones are announced however much is coming"
    source.coming = loader._COMING_BYTES - 1
    fetcher[64]
    assert len(source.told) == 2 + loader._ANNOUNCED + loader._MORE_ANNOUNCED, "a few more each time"
    for step in range(2, 300):
        fetcher[step * 64]
    ahead = len(source.told) - 300
    assert ahead == loader._MOST_ANNOUNCED // (64 // world_size), "and no more than so many samples"
    assert len({index for told in source.told for index in told}) == sum(map(len, source.told))
