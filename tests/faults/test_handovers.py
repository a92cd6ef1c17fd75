"""A covering part of the table of benchmarks/faults.py: BERT in mid-epoch and a GAN in mid-fade change hands."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

import trainkit
from benchmarks import handover
from trainkit.testing import run_ranks

# Each writes once to itself and once to another, for one model and the other in turn.
CELLS = [
    handover.Cell(("bert", "gan")[(i + away) % 2], wrote, handover.WHERE[(i + 3 * away) % len(handover.WHERE)])
    for i, wrote in enumerate(handover.WHERE)
    for away in (0, 1)
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def handovers(tmp_path_factory):
    return handover.Handovers(
        lambda world_size, function, *args: run_ranks(function, world_size, *args), tmp_path_factory.mktemp("handovers")
    )


def _is_nightly(cell):
    """Most that read what they wrote themselves; all write and are read from by another."""
    return cell.wrote == cell.reads and cell.wrote not in (("fsdp", 4), ("zero3", 2))


@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, marks=[pytest.mark.nightly] * _is_nightly(cell)) for cell in CELLS],
    ids=lambda cell: f"{cell.model}-{cell.wrote}-{cell.reads}",
)
def test_the_same_state_and_the_same_losses(handovers, cell):
    measured = handovers.measured(cell)
    assert measured.num_tensors > 100 and measured.num_different == 0
    assert measured.losses <= (0.0 if cell.wrote == cell.reads else {"bert": 2e-6, "gan": 1e-4}[cell.model])
    assert not measured.misses


def test_every_place_writes_and_reads():
    assert {cell.wrote for cell in CELLS} == {cell.reads for cell in CELLS} == set(handover.WHERE)
    assert len(CELLS) == 16 and {cell.model for cell in CELLS} == {"bert", "gan"}
    by_day = [cell for cell in CELLS if not _is_nightly(cell)]
    assert {cell.wrote for cell in by_day} == {cell.reads for cell in by_day} == set(handover.WHERE)


def _load_and_change_a_bit(*args):
    """What is loaded, but for the last bit of one number."""
    state, losses = handover.load_and_go_on(*args)
    name = next(name for name in state if name.startswith("model.average/"))
    flat = state[name].flatten()
    flat[0] = torch.nextafter(flat[0], flat[0] + 1)
    return {**state, name: flat.view(state[name].shape)}, losses


def _load_a_batch_late(model, strategy, precision, path):
    load = trainkit.Runtime.load

    def late(runtime, path, **engines):
        loaded = load(runtime, path, **engines)
        return replace(loaded, position=loaded.position + handover.Bert.batch_size)

    with mock.patch.object(trainkit.Runtime, "load", late):
        return handover.load_and_go_on(model, strategy, precision, path)


@pytest.mark.parametrize("fault", [_load_and_change_a_bit, _load_a_batch_late])
def test_the_comparison_can_fail(handovers, fault):
    cell = handover.Cell("bert", ("single", 1), ("single", 1))
    assert not handovers.measured(cell).misses
    with mock.patch.object(handover, "load_and_go_on", fault):
        assert handovers.measured(cell).misses
