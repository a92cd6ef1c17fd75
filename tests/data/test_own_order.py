"""Samplers, DataLoaders and iterable data of one's own: the same samples on any ranks, and after any resume."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

import trainkit
from trainkit.errors import ConfigError
from trainkit.random import key_of
from trainkit.testing import run_ranks

NUM, BATCH, STEPS, SEED = 30, 4, 20, 11
X = torch.arange(NUM)
OF_ONE_PROCESS = ("iterable, a worker",)  # a pool's workers are spawned, each with an import of torch


class ByLength(Sampler[list[int]]):
    """Batches of neighbours in shuffled order, as samplers make that put samples of one length together."""

    def __init__(self, size=BATCH):
        self.size, self.epoch = size, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return NUM // self.size

    def __iter__(self):
        starts = list(range(0, NUM - self.size + 1, self.size))
        random.Random(self.epoch).shuffle(starts)
        yield from ([*range(start, start + self.size)] for start in starts)


class Lines(IterableDataset[dict[str, float]]):
    """30 samples in another order each epoch; draws from the global generators, as augmentation does."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for index in random.Random(self.epoch).sample(range(NUM), NUM):
            yield {"x": index, "drawn": float(torch.rand(()))}


def permuted(seed, epoch):
    return np.random.default_rng([seed, epoch]).permutation(NUM)


def doubled(items):
    return torch.tensor([int(item[0]) for item in items]) * 2


def _sources():
    """By name: arguments of `batches`; made on every rank."""
    data = TensorDataset(X)
    return {
        "function": (X, {"order": permuted}),
        "sampler": (X, {"order": RandomSampler(X, generator=torch.Generator().manual_seed(1))}),
        "replacement": (X, {"order": WeightedRandomSampler([1.0] * NUM, 2 * NUM)}),
        "subset": (X, {"order": SubsetRandomSampler(range(0, NUM, 3), generator=torch.Generator())}),
        "batch sampler": (X, {"order": ByLength()}),
        "distributed": (X, {"order": DistributedSampler(data, 1, 0)}),
        "loader": (DataLoader(data, batch_size=7, shuffle=True, collate_fn=doubled), {}),
        "in order": (DataLoader(data, batch_size=7), {}),
        "loader's batches": (DataLoader(data, batch_sampler=ByLength()), {}),
        "iterable": (Lines(), {}),
        "iterable, a worker": (DataLoader(Lines(), batch_size=3, num_workers=2), {}),
    }


def _read(start=0, num_steps=STEPS, names=()):
    """{name: {position: (index, content)}} of this rank."""
    found: dict[str, dict[int, Any]] = {}
    runtime = trainkit.Runtime(seed=SEED, device="cpu")
    for name, (source, options) in _sources().items():
        if (names and name not in names) or (name in OF_ONE_PROCESS and runtime.ranks.world_size > 1):
            continue
        rows = found[name] = {}
        for batch in runtime.batches(source, batch_size=BATCH, start=start, num_steps=num_steps, **options):
            torch.rand(3)  # the process's own draws must not matter
            content = batch.data
            if isinstance(content, dict):
                content = list(zip(content["x"].tolist(), content["drawn"].tolist(), strict=True))
            else:
                content = (content[0] if isinstance(content, list | tuple) else content).tolist()
            for position, *row in zip(batch.positions.tolist(), batch.indices.tolist(), content, strict=True):
                rows[position] = row
    runtime.close()
    return found


def _whole(world_size, *arguments):
    ranks = run_ranks(_read, world_size, *arguments, timeout_s=300.0) if world_size > 1 else [_read(*arguments)]
    return {name: {k: v for rank in ranks for k, v in rank[name].items()} for name in ranks[0]}


@pytest.fixture(scope="module")
def alone():
    return _whole(1)


def _indices(rows):
    return [rows[position][0] for position in range(STEPS * BATCH)]


def test_orders_are_what_they_say(alone):
    """The oracle is the sampler itself, as a plain loop over its epochs has it."""
    assert _indices(alone["function"]) == [i for epoch in range(3) for i in permuted(SEED, epoch).tolist()][:80]
    for name, epoch_length, distinct in (("sampler", NUM, NUM), ("distributed", NUM, NUM), ("subset", 10, 10)):
        epochs = [_indices(alone[name])[i : i + epoch_length] for i in range(0, 60, epoch_length)]
        assert all(len(set(epoch)) == distinct for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs), "each epoch has an order of its own"
    assert set(_indices(alone["subset"])) == set(range(0, NUM, 3))
    drawn = torch.Generator().manual_seed(key_of(SEED, "own order", 0))
    assert _indices(alone["subset"])[:10] == list(SubsetRandomSampler(range(0, NUM, 3), generator=drawn))
    torch.manual_seed(key_of(SEED, "own order", 0))
    assert _indices(alone["replacement"])[: 2 * NUM] == list(WeightedRandomSampler([1.0] * NUM, 2 * NUM))
    assert len(set(_indices(alone["replacement"])[: 2 * NUM])) < NUM
    sampler, batches = ByLength(), []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches += [index for batch in sampler for index in batch]
    assert _indices(alone["batch sampler"]) == _indices(alone["loader's batches"]) == batches[:80]
    assert _indices(alone["in order"]) == [*range(NUM), *range(NUM), *range(NUM)][:80]
    assert [row[1] for row in alone["loader"].values()] == [2 * index for index in _indices(alone["loader"])]
    runtime = trainkit.Runtime(seed=SEED, device="cpu")
    usual = [i for batch in runtime.batches(X, batch_size=BATCH, num_steps=STEPS) for i in batch.indices.tolist()]
    assert _indices(alone["loader"]) == _indices(alone["distributed"]) == _indices(alone["sampler"]) == usual


def test_an_iterable_set_gives_each_sample_once_an_epoch(alone):
    rows = alone["iterable"]
    assert rows == alone["iterable, a worker"]
    expected = [random.Random(epoch).sample(range(NUM), NUM) for epoch in range(3)]
    assert [rows[position][1][0] for position in range(80)] == [x for epoch in expected for x in epoch][:80]
    assert _indices(rows) == [*range(NUM), *range(NUM), *range(NUM)][:80]
    assert len({row[1][1] for row in rows.values()}) == 80


@pytest.mark.parametrize("world_size", [2, 4])
def test_equal_on_any_number_of_ranks(alone, world_size):
    assert _whole(world_size) == {name: rows for name, rows in alone.items() if name not in OF_ONE_PROCESS}


@pytest.mark.parametrize(("world_size", "start"), [(1, 68), (2, 36)])
def test_equal_after_a_resume_at_any_position(alone, world_size, start):
    resumed = _whole(world_size, start, STEPS - start // BATCH)
    assert resumed == {name: {p: alone[name][p] for p in alone[name] if p >= start} for name in resumed}
    assert len(resumed) >= 10


def test_a_resume_between_batches_of_another_size(alone):
    names = ("function", "sampler", "iterable")
    resumed = _whole(1, 33, 5, names)
    assert resumed == {name: {p: alone[name][p] for p in range(33, 53)} for name in names}


class Counting(Sampler[int]):
    """Its epochs depend on how often it was asked."""

    generator = np.random.default_rng(0)

    def __len__(self):
        return NUM

    def __iter__(self):
        return iter(self.generator.permutation(NUM).tolist())


class Endless(Counting):
    def __iter__(self):
        while True:
            yield 0


class Once(IterableDataset[int]):
    def __init__(self):
        self.samples = iter(range(NUM))

    def __iter__(self):
        return self.samples


class Prefetching(DataLoader[Any]):
    pass


DATA = TensorDataset(X)


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        (X, {"order": Counting()}, r"order=Counting gives other indices when epoch 0 .*function \(seed, epoch\)"),
        (X, {"order": Endless()}, r"order=Endless gives more than the 30 indices of its len"),
        (X, {"order": (i for i in range(3))}, r"order=generator: must be .*__len__"),
        (X, {"order": lambda seed, epoch: [0, NUM]}, r"gives index 30 in epoch 0: it must be 0 to 29"),
        (X, {"order": lambda seed, epoch: [0.5]}, r"of float64 of shape \[1\] for epoch 0: it must give integers"),
        (X, {"order": lambda seed, epoch: []}, "gives no index"),
        (X, {"order": lambda seed, epoch: range(3 + epoch)}, r"gives 4 indices in epoch 1 and 3 in epoch 0"),
        (X, {"order": BatchSampler(range(NUM), 4, False)}, r"batch 7 of epoch 0 has 2 .*batch_size=4.*drop_last=True"),
        (X, {"order": ByLength(), "start": 2}, r"start=2 .*batches of 4"),
        (X, {"order": permuted, "weights": torch.ones(NUM)}, "weights and order .*remove one"),
        (Lines(), {"order": permuted}, "weights and order need a data set with samples to index, and Lines has none"),
        (Once(), {}, r"Once continues, or gives another sample.*give list\(source\)"),
        ((i for i in range(3)), {}, r"generator: give list\(source\)"),
        (Prefetching(DATA), {}, r"cannot be taken over: its class Prefetching may change the batches"),
        (DataLoader(DATA, worker_init_fn=print), {}, "its worker_init_fn is not called"),
        (DataLoader(DATA, batch_size=None), {}, "with batch_size=None, its data set makes the batches"),
        (DataLoader(Lines(), batch_size=None), {}, "with batch_size=None, its data set makes the batches"),
    ],
)
def test_what_cannot_be_an_order_is_one_line(source, options, says):
    runtime = trainkit.Runtime(device="cpu")
    with pytest.raises(ConfigError, match=says) as caught:
        runtime.batches(source, batch_size=4, **options)
    assert "\n" not in str(caught.value)


class Sharded(Lines):
    def __iter__(self):
        rank, num = torch.distributed.get_rank(), torch.distributed.get_world_size()
        yield from range(rank, NUM, num)


def _disagreeing():
    runtime = trainkit.Runtime(device="cpu")
    said = []
    for source, order in ((Sharded(), None), (X, SubsetRandomSampler(range(runtime.ranks.rank, NUM, 2)))):
        with pytest.raises(ConfigError, match="ranks disagree") as caught:
            runtime.batches(source, batch_size=4, order=order)
        said.append(str(caught.value))
    return said


def test_what_splits_the_data_by_itself_is_refused_on_all_ranks():
    first, second = run_ranks(_disagreeing, 2)
    assert first == second
    assert "first sample of iterable data, which every rank must read in full" in first[0]
    assert "order, which every rank must give in full" in first[1]


def _evaluated():
    runtime = trainkit.Runtime(device="cpu")
    read = []
    for source in (Lines(), DataLoader(TensorDataset(X), batch_size=7, shuffle=True), DataLoader(Lines())):
        batches = list(runtime.evaluation_batches(source, batch_size=7))
        indices = [index for batch in batches for index in batch.indices.tolist()]
        read.append((len(batches), indices, [len(batch) for batch in batches]))
    return read


def test_an_evaluation_measures_each_sample_once():
    for ranks in zip(*run_ranks(_evaluated, 4, timeout_s=300.0), strict=True):
        assert {num for num, _, _ in ranks} == {5}
        assert sorted(index for _, indices, _ in ranks for index in indices) == list(range(NUM))
        assert sum(lengths[-1] for _, _, lengths in ranks) == 2


def test_evaluating_chosen_samples_says_how_to_choose_them():
    loader = DataLoader(TensorDataset(X), sampler=SubsetRandomSampler([1, 2]))
    runtime = trainkit.Runtime(device="cpu")
    with pytest.raises(ConfigError, match=r"SubsetRandomSampler chooses among them: give torch\.utils\.data\.Subset"):
        runtime.evaluation_batches(loader, batch_size=2)
    chosen = Subset(TensorDataset(X), [1, 2])
    assert [batch.data[0].tolist() for batch in runtime.evaluation_batches(chosen, batch_size=2)] == [[1, 2]]
    given = next(iter(DataLoader(TensorDataset(X), sampler=SequentialSampler(X), collate_fn=default_collate)))
    assert given[0].tolist() == [0]


def test_epochs_of_other_lengths_are_refused_where_they_end():
    class Growing(Lines):
        def __iter__(self):
            yield from range(8 + self.epoch)

    runtime = trainkit.Runtime(device="cpu")
    with pytest.raises(ConfigError, match=r"Growing gives 9 samples in epoch 1 and 8 in epoch 0"):
        list(runtime.batches(Growing(), batch_size=4, num_steps=6))
