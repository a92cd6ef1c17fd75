"""A data set with `prefetch` is told of the batches that its process will be asked for, in order, and of no others."""

import numpy as np
import pytest
import torch

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
        assert source.told[: len(asked) - 1] == asked[1:], "those that were asked for had been announced"
        assert len(source.told) <= number + 4
    assert source.told[:199] == asked[1:]


def test_a_pass_over_held_out_samples_ends_within_them():
    source = Announced(50)
    fetcher = Fetcher(source, Order(50, 3, shuffle=False), batch_size=8, rank=0, world_size=1, collate=None)
    seen = [fetcher[position].data["x"].tolist() for position in range(0, 50, 8)]
    assert np.concatenate(seen).tolist() == list(range(50))
    assert source.told == seen[1:6]
