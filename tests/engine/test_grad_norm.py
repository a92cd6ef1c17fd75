"""The gradient norm, of small gradients in one operation and of others one by one, against float64 and PyTorch."""

import copy

import pytest
import torch
from torch import nn

import trainkit
from trainkit.errors import NonFiniteError
from trainkit.testing import run_ranks

SIZES = {"small": 8, "large": 400}  # features: mean elements of a gradient below and above 4096


def _module(size: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIZES[size], SIZES[size]), nn.Tanh(), nn.Linear(SIZES[size], 1))


def _data(size: str) -> torch.Tensor:
    return torch.randn(64, SIZES[size], generator=torch.Generator().manual_seed(1))


def _loss(module, x):
    return module(x).square().mean()


def _trained(strategy, size, max_grad_norm):
    """Norms of five steps, and the weights after them."""
    runtime = trainkit.Runtime(strategy=strategy, device="cpu", tracker=trainkit.Tracker())
    module = _module(size)
    engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1), max_grad_norm=max_grad_norm)
    norms = []
    for batch in runtime.batches(_data(size), batch_size=16, num_steps=5):
        engine.backward(_loss(engine, batch.data))
        norms.append(float(engine.step().grad_norm))
    return norms, [p.detach().clone() for p in module.parameters()]


def _plain(size, max_grad_norm, dtype):
    """The same by plain PyTorch on the whole batch, in the same order."""
    runtime = trainkit.Runtime(strategy="single", device="cpu", tracker=trainkit.Tracker())
    batches = [batch.data for batch in runtime.batches(_data(size), batch_size=16, num_steps=5)]
    module, norms = copy.deepcopy(_module(size)).to(dtype), []
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for x in batches:
        optimizer.zero_grad()
        _loss(module, x.to(dtype)).backward()
        norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm or torch.inf)))
        optimizer.step()
    return norms, [p.detach() for p in module.parameters()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_one_process_has_the_bits_of_pytorch(size, max_grad_norm):
    norms, weights = _trained("single", size, max_grad_norm)
    expected, expected_weights = _plain(size, max_grad_norm, torch.float32)
    assert all(map(torch.equal, weights, expected_weights))
    if max_grad_norm is not None:
        assert norms == expected, "what gradients are scaled by has the same bits too"
    assert norms == pytest.approx(_plain(size, max_grad_norm, torch.float64)[0], rel=2e-6)


def _norms(strategy):
    return [_trained(strategy, size, None)[0] for size in SIZES]


@pytest.mark.parametrize(("strategy", "world_size"), [("ddp", 2), ("ddp", 4), ("fsdp", 2)])
def test_ranks_agree_with_one_process_in_float64(strategy, world_size):
    expected = [_plain(size, None, torch.float64)[0] for size in SIZES]
    for found in run_ranks(_norms, world_size, strategy):
        for norms, oracle in zip(found, expected, strict=True):
            assert norms == pytest.approx(oracle, rel=5e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])  # the last one's square is beyond float32
def test_what_is_not_finite_is_named_and_updates_nothing(size, value):
    runtime = trainkit.Runtime(strategy="single", device="cpu", tracker=trainkit.Tracker())
    module = _module(size)
    before = copy.deepcopy(module.state_dict())
    module.get_parameter("0.bias").register_hook(lambda gradient: torch.full_like(gradient, value))
    engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
    batch = next(iter(runtime.batches(_data(size), batch_size=16, num_steps=1)))
    engine.backward(_loss(engine, batch.data))
    with pytest.raises(NonFiniteError, match=r"0\.bias"):
        engine.step()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
