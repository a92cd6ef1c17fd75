"""Columns: every way to give arrays and lists hands out the samples that are asked for, on any rank, and cut evenly."""

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset, default_collate

import trainkit
from trainkit.data.batch import Batch
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks

NUM, SIZE = 10, 4
X = np.arange(NUM * 3, dtype=np.float32).reshape(NUM, 3)
NAMES = [f"name{number}" for number in range(NUM)]
Pair = namedtuple("Pair", "x y")


def sources() -> dict[str, object]:
    x, y = torch.from_numpy(X), np.arange(NUM)
    return {
        "tensor": x,
        "array": X,
        "array of another byte order": X.astype(">f4"),
        "read-only": np.frombuffer(X.tobytes(), np.float32).reshape(NUM, 3),
        "texts": np.array(NAMES),
        "objects": np.array(NAMES, dtype=object),
        "pair of arrays": (X, y),
        "pair": (x, y),
        "text beside": (x, NAMES),
        "named pair": Pair(x, X),
        "TensorDataset": TensorDataset(x, torch.from_numpy(y)),
        "dict": {"x": x, "array": X, "list": y.tolist(), "names": NAMES, "deep": {"pair": (X, y)}},
        "list of tensors": list(x),
        "list of arrays": list(X),
        "list of dicts": [{"x": row, "name": name} for row, name in zip(X, NAMES, strict=True)],
        "list of pairs": list(zip(X, NAMES, strict=True)),
    }


def expected(source, indices: list[int]):
    """What torch's DataLoader would make of those samples, one by one."""

    def sample(tree, index):
        if isinstance(tree, TensorDataset):
            return tree[index]
        if isinstance(tree, dict):
            return {key: sample(value, index) for key, value in tree.items()}
        if isinstance(tree, tuple):
            parts = [sample(part, index) for part in tree]
            return Pair(*parts) if isinstance(tree, Pair) else tuple(parts)
        value = tree[index]
        if isinstance(value, np.ndarray):
            return value.astype(value.dtype.newbyteorder("="))
        return str(value) if isinstance(value, np.str_) else value

    return default_collate([sample(source, index) for index in indices])


def flat(tree) -> list[Any]:
    """Leaves; texts as they are."""
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in flat(value)]
    if isinstance(tree, list | tuple) and not all(isinstance(part, str) for part in tree):
        return [leaf for value in tree for leaf in flat(value)]
    return [tree.tolist()] if isinstance(tree, torch.Tensor) else [list(tree)]


def _shares(names: list[str], num_workers: int):
    """By name, (indices, leaves) of this rank's shares in training and evaluation, whole and in micro-batches."""
    runtime = trainkit.Runtime(device="cpu")
    found: dict[str, list[Any]] = {name: [] for name in names}
    for name, shares in found.items():
        source = sources()[name]
        for batch in [
            *runtime.batches(source, batch_size=SIZE, num_steps=2, num_workers=num_workers),
            *runtime.evaluation_batches(source, batch_size=9),
        ]:
            for part in (batch, batch.micro_batch(0, 2), batch.micro_batch(1, 2)):
                shares.append((part.indices.tolist(), flat(part.data)))
    return found


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_source_gives_the_samples_that_torch_would(world_size):
    ranks = run_ranks(_shares, world_size, list(sources()), 0)
    for name, source in sources().items():
        for rank in ranks:
            for indices, leaves in rank[name]:
                if indices:
                    assert leaves == flat(expected(source, indices)), name
                else:
                    assert all(leaf == [] for leaf in leaves), name


def test_loader_workers_give_the_same():
    names = ["dict", "list of pairs"]
    assert run_ranks(_shares, 1, names, 1) == run_ranks(_shares, 1, names, 0)


@pytest.mark.parametrize("name", ["array", "pair of arrays", "dict", "list of tensors"])
def test_a_collate_function_gets_samples(name):
    runtime, source, seen = trainkit.Runtime(device="cpu"), sources()[name], []

    def collate(items):
        seen.extend(items)
        return torch.zeros(len(items))

    batch = next(runtime.batches(source, batch_size=SIZE, num_steps=1, collate=collate))
    assert batch.data.shape == (SIZE,)
    assert len(seen) == SIZE
    assert flat(default_collate(seen)) == flat(expected(source, batch.indices.tolist()))


def cut(data, num: int = 4) -> list[Any]:
    positions = torch.arange(num)
    batch = Batch(data, 0, num, positions, positions)
    return [batch.micro_batch(number, 2).data for number in range(2)]


def test_what_collate_makes_is_cut_by_samples():
    assert cut(["a", "b", "c", "d"]) == [["a", "c"], ["b", "d"]]
    assert cut([("a", "b"), ("x", "y")], num=2) == [[("a",), ("x",)], [("b",), ("y",)]]  # default_collate's columns
    assert cut({"file": "all of it", "n": 3, "none": None}) == [{"file": "all of it", "n": 3, "none": None}] * 2
    ragged = [torch.zeros(number) for number in range(4)]  # a sample in each place
    assert [[len(part) for part in half] for half in cut(ragged)] == [[0, 2], [1, 3]]
    assert [half.tolist() for half in cut(np.arange(4))] == [[0, 2], [1, 3]]
    assert [half.item() for half in cut(torch.tensor(7))] == [7, 7]
    columns = cut([torch.arange(2), torch.arange(2, 4)], num=2)
    assert [[part.tolist() for part in half] for half in columns] == [[[0], [2]], [[1], [3]]]


def test_what_cannot_be_cut_is_named():
    with pytest.raises(ConfigError, match=r"batch of 4 samples holds a Tensor of shape \[7, 2\]"):
        cut({"packed": torch.zeros(7, 2)})


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ((number for number in range(3)), r"generator: give list\(source\)"),
        ({"train": TensorDataset(torch.zeros(4))}, r"column \['train'\] is a TensorDataset .*give one of them"),
        ({"x": torch.zeros(())}, r"column \['x'\] is a Tensor"),
        ({"t": np.array(["2024-01-01"], "datetime64[D]")}, r"column \['t'\] is a ndarray of datetime64"),
        ({}, r"differ in their number of samples: nothing"),
        ((["a"], [1]), r"tuple: give a dict of the lists"),
        ((X, X[1:]), r"number of samples: \[0\] 10, \[1\] 9"),
    ],
)
def test_what_is_no_source_says_what_to_give_instead(source, says):
    runtime = trainkit.Runtime(device="cpu")
    for begin in (runtime.batches, runtime.evaluation_batches):
        with pytest.raises(ConfigError, match=says) as caught:
            begin(source, batch_size=2)
        assert "\n" not in str(caught.value)


def test_a_pandas_frame_says_how_to_give_its_columns():
    pandas = pytest.importorskip("pandas", reason="its frames are the case")
    frame = pandas.DataFrame({"x": X[:, 0], "name": NAMES}, index=range(5, 15))
    runtime = trainkit.Runtime(device="cpu")
    with pytest.raises(ConfigError, match=r"DataFrame: give a dict of its columns"):
        runtime.batches(frame, batch_size=2)
    columns = {name: frame[name].to_numpy() for name in frame}
    batch = next(runtime.batches(columns, batch_size=2, num_steps=1))
    assert batch.name == [NAMES[index] for index in batch.indices]
