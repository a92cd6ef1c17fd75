"""Each strategy spreads what it promises: bytes held on every rank, counted from the tensors that are alive there."""

from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from torch import nn

import trainkit
from benchmarks import memory
from trainkit.testing import run_ranks

NUM_RANKS = 4
STRATEGIES = {
    **{name: make() for name, make in memory.STRATEGIES.items()},
    "zero3": trainkit.Zero3(keep_below=20),  # some of so small a network's parameters, as of a large one's
}
KINDS = ("parameters", "copy", "gradients", "optimizer")
SPREAD = {  # kind -> by how much
    "ddp": {},
    "fsdp": {"parameters": 4, "gradients": 4, "optimizer": 4},
    "hsdp": {"parameters": 2, "gradients": 2, "optimizer": 2},
    "zero1": {"copy": 4, "optimizer": 4},
    "zero2": {"copy": 4, "gradients": 4, "optimizer": 4},
    "zero3": {"parameters": 4, "copy": 4, "gradients": 4, "optimizer": 4},
}
BESIDES = 256  # bytes: a loss, the sums of a turn


def _network():
    """30,844 parameters in 116 tensors, of most of which neither the rows nor the elements divide by four."""
    widths = [19, *[23, 29, 17] * 19, 1]
    layers = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(widths)]
    return nn.Sequential(*layers)


def _count(name):
    x = torch.randn(3, 19)
    counted, shapes, _ = memory.run(
        STRATEGIES[name], _network, lambda forward: forward(x).square().mean(), (nn.Linear,)
    )
    return asdict(counted), shapes


@pytest.fixture(scope="module")
def counted():
    """strategy -> what each rank holds."""
    return {name: [held for held, _ in run_ranks(_count, NUM_RANKS, name)] for name in STRATEGIES}


def _whole(name):
    """Bytes of each kind that one process alone has, or all ranks together that hold one copy."""
    whole = 4 * sum(p.numel() for p in _network().parameters())
    return {"parameters": whole, "copy": whole if "zero" in name else 0, "gradients": whole, "optimizer": 2 * whole}


def _padding(name):
    return asdict(memory.padding(STRATEGIES[name], [[*p.shape] for p in _network().parameters()], NUM_RANKS))


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_rank_holds_more_than_its_share_and_the_padding(counted, name):
    for rank, held in enumerate(counted[name]):
        for kind in KINDS:
            share = _whole(name)[kind] / SPREAD[name].get(kind, 1)
            assert held[kind] <= share + _padding(name)[kind] + BESIDES, f"{kind} of rank {rank}"


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_ranks_together_hold_everything(counted, name):
    """A count that overlooks tensors would pass the test above."""
    for kind in KINDS:
        num_copies = NUM_RANKS // SPREAD[name].get(kind, 1)
        if (name, kind) == ("zero1", "gradients"):
            num_copies = 1  # DeepSpeed lets go of the others' when they are reduced, though stage 1 need not
        assert sum(held[kind] for held in counted[name]) >= num_copies * _whole(name)[kind], kind


@pytest.mark.parametrize("name", STRATEGIES)
def test_padding_is_small(name):
    """Or the first test would allow much. Rows of 17 to 29 are few for four ranks; a real model's are hundreds."""
    for kind, by in SPREAD[name].items():
        assert _padding(name)[kind] <= 0.15 * _whole(name)[kind] / by, kind


def test_what_divides_evenly_needs_no_padding():
    shapes = [[16, 8], [16], [32, 16]]
    for name in ("ddp", "fsdp", "hsdp"):
        padding = memory.padding(STRATEGIES[name], shapes, NUM_RANKS)
        assert padding.parameters == padding.gradients == 0


def test_a_parameter_across_a_cut_counts_for_both_sides():
    assert memory.largest_touching([3, 4, 5], partition=6) == 9
    assert memory.largest_touching([6, 6], partition=6) == 6
