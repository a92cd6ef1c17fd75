"""Batch identity: the same global batches on any number of ranks and loader workers, and after a resume."""

import hashlib
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import trainkit
from trainkit.errors import ConfigError
from trainkit.random import key_of
from trainkit.testing import run_ranks

NUM_SAMPLES, BATCH = 300, 16


class Noisy(Dataset[dict[str, Any]]):
    """Draws from all three global generators, as random transforms in user code do."""

    def __len__(self):
        return NUM_SAMPLES

    def __getitem__(self, index):
        drawn = (random.random(), float(np.random.rand()), float(torch.rand(())))
        return {"index": index, "drawn": torch.tensor(drawn, dtype=torch.float64)}


def _shares(num_workers: int, start: int, num_steps: int, batch_size: int):
    """(position, positions, rows) of every batch of this rank's share."""
    runtime = trainkit.Runtime(seed=11, device="cpu")
    stream = runtime.batches(Noisy(), batch_size=batch_size, start=start, num_steps=num_steps, num_workers=num_workers)
    shares = []
    for batch in stream:
        keyed = runtime.rand(batch, 2, name="mask").double()
        after = torch.rand(1)  # the process's own generator must not matter to the data
        assert after.numel() == 1
        rows = torch.cat([batch.index.double().view(-1, 1), batch.drawn, keyed], dim=1)
        assert torch.equal(batch.index, batch.indices)
        shares.append((batch.position, batch.positions.tolist(), rows.tolist()))
    return shares


def _hashes(world_size, num_workers=0, start=0, num_steps=51, batch_size=BATCH):
    """Content hashes of global batches, put together from all ranks by position."""
    ranks = run_ranks(_shares, world_size, num_workers, start, num_steps, batch_size)
    hashes = []
    for step in zip(*ranks, strict=True):
        rows: dict[int, list[float]] = {}
        for _, positions, values in step:
            rows.update(zip(positions, values, strict=True))
        assert sorted(rows) == list(range(step[0][0], step[0][0] + batch_size))
        content = repr([rows[position] for position in sorted(rows)])
        hashes.append(hashlib.sha256(content.encode()).hexdigest())
    return hashes


@pytest.fixture(scope="module")
def reference():
    return _hashes(1)


def test_global_batches_differ_from_one_another(reference):
    assert len(set(reference)) == 51


@pytest.mark.parametrize("world_size", [2, 4])
def test_equal_on_any_number_of_ranks(reference, world_size):
    assert _hashes(world_size) == reference


@pytest.mark.parametrize("world_size", [1, 2])
def test_equal_with_loader_workers(reference, world_size):
    assert _hashes(world_size, num_workers=2) == reference


@pytest.mark.parametrize("world_size", [1, 4])
def test_equal_after_a_resume(reference, world_size):
    assert _hashes(world_size, start=17 * BATCH, num_steps=34) == reference[17:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_equal_after_the_batch_size_changed_on_the_way(num_workers):
    """A stretch with another batch size gives the same samples, whatever the ranks; then the old one goes on."""
    there = _hashes(1, start=17 * BATCH, num_steps=4, batch_size=24)
    assert _hashes(4, num_workers, start=17 * BATCH, num_steps=4, batch_size=24) == there
    on = 17 * BATCH + 4 * 24
    assert _hashes(2, num_workers, start=on, num_steps=10) == _hashes(1, start=on, num_steps=10)


def _evaluate(num_samples: int, batch_size: int):
    runtime = trainkit.Runtime(device="cpu")
    batches = list(runtime.evaluation_batches(torch.arange(num_samples), batch_size=batch_size))
    counted = runtime.ranks.all_reduce_sum(
        {"count": sum(len(b) for b in batches), "sum": sum(b.data.sum() for b in batches)}
    )
    return len(batches), counted, [len(b) for b in batches]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_evaluation_counts_every_sample_once(world_size):
    results = run_ranks(_evaluate, world_size, 37, 12)
    for num_batches, counted, _ in results:
        assert num_batches == 4
        assert counted == {"count": 37, "sum": sum(range(37))}
    if world_size == 4:
        assert [lengths[-1] for _, _, lengths in results] == [1, 0, 0, 0]


def test_a_user_collate_and_named_tuples():
    runtime = trainkit.Runtime(device="cpu")
    stream = runtime.batches(
        Noisy(), batch_size=4, num_steps=1, collate=lambda items: torch.tensor([i["index"] for i in items])
    )
    batch = next(stream)
    assert torch.equal(batch.data, batch.indices)


def test_sources_that_cannot_be():
    runtime = trainkit.Runtime(device="cpu")
    with pytest.raises(ConfigError, match="map-style"):
        runtime.batches(iter([1, 2]), batch_size=2)
    with pytest.raises(ConfigError, match="differ in their number of samples"):
        runtime.batches((torch.zeros(3), torch.zeros(4)), batch_size=2)


def _too_few():
    runtime = trainkit.Runtime(device="cpu")
    with pytest.raises(ConfigError, match=r"batch_size=3 .* 4 ranks"):
        runtime.batches(torch.zeros(10), batch_size=3)
    return True


def test_fewer_samples_than_ranks_is_refused_on_all_ranks():
    assert run_ranks(_too_few, 4) == [True] * 4


def test_a_batch_names_what_it_has():
    runtime = trainkit.Runtime(device="cpu")
    batch = next(runtime.batches({"tokens": torch.zeros(8, 3)}, batch_size=4))
    assert batch.tokens.shape == (4, 3)
    with pytest.raises(AttributeError, match="dict of tokens"):
        batch.labels  # noqa: B018


def _weighted(start: int):
    runtime = trainkit.Runtime(seed=4, device="cpu")
    weights = torch.arange(20.0)
    stream = runtime.batches(torch.arange(20), batch_size=8, start=start, num_steps=3, weights=weights)
    return [(batch.positions.tolist(), batch.data.tolist()) for batch in stream]


def test_weighted_batches_are_equal_on_any_ranks_and_resumed():
    def drawn(world_size: int, start: int) -> dict[int, int]:
        shares = [share for rank in run_ranks(_weighted, world_size, start) for share in rank]
        return {position: value for share in shares for position, value in zip(*share, strict=True)}

    alone = drawn(1, 0)
    assert sorted(alone) == list(range(24))
    assert drawn(2, 0) == drawn(4, 0) == alone
    resumed = drawn(2, 8)
    assert {position: resumed[position] for position in range(8, 24)} == {p: alone[p] for p in range(8, 24)}


def test_a_start_that_is_no_position_is_one_error():
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker())
    with pytest.raises(ConfigError, match=r"start='8': must be a number of samples, such as runtime\.load"):
        runtime.batches(torch.arange(20), batch_size=4, start="8")  # type: ignore[arg-type]
    runtime.close()


def _drawn_in_steps(loops):
    """(position, draws from the global generators) of every step of loops of (start, batch size, number of steps)."""
    runtime, drawn = trainkit.Runtime(seed=11, device="cpu", tracker=trainkit.Tracker()), []
    for start, batch_size, num_steps in loops:
        for batch in runtime.batches(torch.zeros(NUM_SAMPLES), batch_size=batch_size, start=start, num_steps=num_steps):
            for _ in range(1 + batch.position % 3):  # how often does not matter to later steps
                values = (random.random(), float(np.random.rand()), float(torch.rand(())))
                drawn.append((batch.position, values))
    return drawn


def _expected_draws(rank, loops):
    """The same by generators of their own, which the documented key seeds."""
    drawn = []
    for start, batch_size, num_steps in loops:
        for position in range(start, start + num_steps * batch_size, batch_size):
            key = key_of(11, "global", position, rank)
            python, numpy = random.Random(key), np.random.RandomState(key & 0xFFFFFFFF)
            generator = torch.Generator().manual_seed(key)
            for _ in range(1 + position % 3):
                values = (python.random(), numpy.rand(), float(torch.rand((), generator=generator)))
                drawn.append((position, values))
    return drawn


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_steps_draw_by_seed_position_and_rank(world_size):
    loops = [(0, 4, 150), (36, 4, 70), (36, 12, 70), (37, 5, 3), (36, 4, 2)]  # resumed, and in other batches
    drawn = run_ranks(_drawn_in_steps, world_size, loops)
    assert drawn == [_expected_draws(rank, loops) for rank in range(world_size)]
