"""What a run records of a few steps: checksums that depend neither on ranks nor on how tensors are sharded."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import trainkit
from tests.counting import Counting
from trainkit.data.batch import Batch
from trainkit.testing import run_ranks
from trainkit.training import trace

ODD = 0x9E3779B97F4A7C15
ALL = (1 << 64) - 1


def by_hand(array, start=0):
    """The checksum by Python's own integers; a shift is that of a signed number."""

    def shifted(value, places):
        return ((value - (1 << 64) if value >> 63 else value) >> places) & ALL

    bits = np.ascontiguousarray(array).view(f"i{array.dtype.itemsize}").ravel().tolist()
    total = 0
    for index, value in enumerate(bits, start=start):
        mixed = ((value + 1) * ODD) & ALL
        mixed = ((mixed ^ shifted(mixed, 29)) * ODD) & ALL
        total += (mixed ^ shifted(mixed, 32)) * (2 * index + 1)
    return total & ALL


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_a_checksum_is_that_of_plain_integers(dtype, monkeypatch):
    monkeypatch.setattr(trace, "_at_once", lambda device: 7)
    tensor = (torch.randn(5, 9) * 100).to(dtype)
    size = torch.empty(0, dtype=dtype).element_size()
    array = tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]).numpy()
    assert int(trace.checksum(tensor, 3)) % (1 << 64) == by_hand(array, 3)


def test_each_bit_and_each_place_counts():
    tensor = torch.randn(64)
    first = int(trace.checksum(tensor))
    for place in range(64):
        other = tensor.clone()
        other.view(torch.int32)[place] ^= 1
        assert int(trace.checksum(other)) != first
    assert int(trace.checksum(torch.tensor([0.0]))) != int(trace.checksum(torch.tensor([-0.0])))
    swapped = torch.arange(64)
    swapped[[3, 4]] = swapped[[4, 3]]
    assert int(trace.checksum(swapped)) != int(trace.checksum(torch.arange(64)))


def test_which_steps():
    assert [step for step in range(1, 300) if trace.is_traced(step)] == [1, 2, 3, 4, 8, 16, 32, 64, 128, 256]


def _weights(strategy):
    runtime = trainkit.Runtime(strategy=strategy, device="cpu")
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    held = {name: parameter.detach().clone().numpy() for name, parameter in network.named_parameters()}
    engine = runtime.setup(network, lambda groups: torch.optim.Adam(groups, lr=0.1))
    found = trace._of_weights(engine.state.weights())
    runtime.close()
    return found, held


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero1", "zero3"])
def test_weights_are_those_of_whole_tensors_when_sharded(strategy, world_size):
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs deepspeed")
    for found, held in run_ranks(_weights, world_size, strategy):
        assert list(found) == list(held)
        for name, array in held.items():
            assert found[name][0] == f"{by_hand(array):016x}", name
            assert found[name][1] == pytest.approx(float(np.linalg.norm(array.astype(np.float64))), rel=1e-12)


def _of_batch(data, rank, world_size):
    size = len(data["x"])
    mine = torch.arange(size)[rank::world_size]
    share = {"x": data["x"][mine], "y": data["y"][mine].numpy()}
    batch = Batch(share, position=40, size=size, positions=40 + mine, indices=100 - mine)
    return trace._of_samples(batch), trace._of_content(batch, rank)


@pytest.mark.parametrize("size", [8, 7, 1])
def test_a_batch_is_the_same_on_any_number_of_ranks(size):
    data = {"x": torch.randn(size, 3, 2), "y": torch.arange(size)}
    assert trace._of_rows(data["x"], torch.arange(size)) % (1 << 64) == by_hand(data["x"].numpy())
    whole = _of_batch(data, 0, 1)
    for world_size in (2, 4):
        parts = [_of_batch(data, rank, world_size) for rank in range(world_size)]
        sums = [sum(part[i] for part in parts) % (1 << 64) for i in (0, 1)]
        assert sums == [value % (1 << 64) for value in whole]
    other = {"x": data["x"].clone(), "y": data["y"]}
    other["x"][-1, -1, -1] += 1
    assert _of_batch(other, 0, 1)[1] != whole[1] and _of_batch(other, 0, 1)[0] == whole[0]


def test_a_batch_of_text_and_of_objects():
    indices = torch.arange(2)

    def of(words):
        return trace._of_content(Batch({"text": words}, 0, 2, indices, indices), 0)

    assert of(["a", "b"]) == of(["a", "b"]) != of(["b", "a"])


def _lines(run_dir):
    return [json.loads(line) for line in (run_dir / "trace.jsonl").read_text().splitlines()]


def _fit(run_dir, num_steps, **options):
    runtime = trainkit.Runtime(device="cpu", run_dir=run_dir, tracker=trainkit.Tracker(), strategy="ddp")
    recipe = Counting(runtime, range(9), num_steps)
    trainkit.Trainer(recipe, **options).fit()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_resumed_run_leaves_the_trace_of_one_that_was_not(tmp_path, world_size):
    run_ranks(_fit, world_size, tmp_path / "whole", 9)
    run_ranks(_fit, world_size, tmp_path / "parts", 6)
    run_ranks(_fit, world_size, tmp_path / "parts", 9)
    whole, parts = _lines(tmp_path / "whole"), _lines(tmp_path / "parts")
    assert [line["step"] for line in whole] == [1, 2, 3, 4, 8, 9]
    assert [line for line in parts if line["step"] != 6] == whole
    first = whole[0]
    assert first["position"] == 4 and first["metrics"]["lr"] == 0.1
    assert whole[-1].keys() == {"step", "position", "weights"}


def test_a_trace_that_cannot_be_written_does_not_end_training(tmp_path, capsys):
    (tmp_path / "trace.jsonl").mkdir()
    runtime = trainkit.Runtime(device="cpu", run_dir=tmp_path)
    trainkit.Trainer(Counting(runtime, range(9), 2)).fit()
    assert "trace.jsonl could not be written" in capsys.readouterr().out
