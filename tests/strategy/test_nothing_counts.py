"""Micro-batches in which nothing counts: weight 0, and no sample at all."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trainkit
from tests.strategy import scenes
from trainkit.data.order import Order
from trainkit.errors import UsageError
from trainkit.testing import run_ranks

NUM_STEPS = 4


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))


class _Attention(nn.Module):
    """Of no samples, the fused attention gives its bias no gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.bias = nn.Parameter(torch.randn(5, 5))
        self.output = nn.Linear(5, 1)

    def forward(self, x):
        x_B15E = x[:, None, :, None]
        return self.output(F.scaled_dot_product_attention(x_B15E, x_B15E, x_B15E, attn_mask=self.bias)[:, 0, :, 0])


def _adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.1)


def _weighted(output, y, counted):
    """A mean of one's own, which of no items is 0/0; and their number."""
    return ((output.squeeze(-1) - y).square() * counted).sum() / counted.sum(), counted.sum()


def _counted(positions, step, batch_size):
    """Nothing counts in step 1, and of other batches the first sample only."""
    return (positions % batch_size == 0) & (step != 1)


def _train(strategy, grad_accumulation_steps, batch_size, is_number):
    runtime = scenes.make_runtime(strategy)
    module = _network()
    engine = runtime.setup(module, _adamw(module), max_grad_norm=0.5, grad_accumulation_steps=grad_accumulation_steps)
    losses = []
    batches = runtime.batches(scenes.data(runtime.dtype), batch_size=batch_size, num_steps=NUM_STEPS)
    for step, batch in enumerate(batches):
        for micro in engine.micro_batches(batch):
            loss, weight = _weighted(engine(micro.x), micro.y, _counted(micro.positions, step, batch_size))
            assert loss.isnan() == (weight == 0)
            engine.backward(loss, weight=int(weight) if is_number else weight)
        result = engine.step()
        losses.append(float(result.loss))
        assert torch.isfinite(result.grad_norm)
        assert not result.skipped
    return scenes.flat(scenes.whole_state(engine)["module"]), torch.tensor(losses)


def _plain(batch_size):
    order, data, module, losses = Order(scenes.NUM_SAMPLES, seed=0), scenes.data(torch.float64), _network().double(), []
    optimizer = _adamw(module)
    for step in range(NUM_STEPS):
        positions = torch.arange(step * batch_size, (step + 1) * batch_size)
        indices = torch.from_numpy(order.indices(positions.numpy()))
        counted = _counted(positions, step, batch_size)
        squared = (module(data["x"][indices]).squeeze(-1) - data["y"][indices]).square()
        loss = (squared * counted).sum() / counted.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    return scenes.in_order_of_names(module), torch.tensor(losses)


@pytest.mark.parametrize("is_number", [True, False])
@pytest.mark.parametrize(
    ("strategy", "world_size", "grad_accumulation_steps"),
    [
        ("single", 1, 1),
        ("single", 1, 2),
        *((strategy, 2, 2) for strategy in scenes.EVERY),
        ("ddp", 4, 1),
        ("fsdp", 4, 1),
        ("zero2", 4, 1),
    ],
)
def test_weight_0_adds_nothing(strategy, world_size, grad_accumulation_steps, is_number):
    """On all ranks too: then the loss is 0, and the gradient."""
    expected = _plain(8)
    assert expected[1][1] == 0
    for result in run_ranks(_train, world_size, strategy, grad_accumulation_steps, 8, is_number):
        for ours, reference in zip(result, expected, strict=True):
            assert scenes.error(ours, reference) < 1e-6


def _train_without_samples(strategy, grad_accumulation_steps, batch_size):
    if strategy == "ddp unused":
        strategy = trainkit.DDP(find_unused_parameters=True)
    runtime = scenes.make_runtime(strategy)
    module = _Attention()
    engine = runtime.setup(module, _adamw(module), grad_accumulation_steps=grad_accumulation_steps)
    sizes = []
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=batch_size, num_steps=NUM_STEPS):
        for micro in engine.micro_batches(batch):
            sizes.append(len(micro))
            engine.backward((engine(micro.x).squeeze(-1) - micro.y).square().mean())
        engine.step()
    return scenes.flat(scenes.whole_state(engine)["module"]), 0 in sizes


@pytest.mark.parametrize(("world_size", "grad_accumulation_steps", "batch_size"), [(2, 2, 3), (4, 3, 7), (1, 3, 2)])
@pytest.mark.parametrize("strategy", ["ddp", "ddp unused", "fsdp", "hsdp"])
def test_a_share_of_no_samples_is_ordinary_for_any_module(strategy, world_size, grad_accumulation_steps, batch_size):
    order, data, module = Order(scenes.NUM_SAMPLES, seed=0), scenes.data(torch.float64), _Attention().double()
    optimizer = _adamw(module)
    for step in range(NUM_STEPS):
        indices = torch.from_numpy(order.indices(torch.arange(step * batch_size, (step + 1) * batch_size).numpy()))
        optimizer.zero_grad()
        (module(data["x"][indices]).squeeze(-1) - data["y"][indices]).square().mean().backward()
        optimizer.step()
    results = run_ranks(_train_without_samples, world_size, strategy, grad_accumulation_steps, batch_size)
    assert any(is_empty for _, is_empty in results)
    for weights, _ in results:
        assert scenes.error(weights, scenes.in_order_of_names(module)) < 1e-10


def _too_few(strategy):
    with pytest.raises(
        UsageError, match=r"3 samples on 2 ranks with grad_accumulation_steps=2: .* batch_size=4 or more, or use"
    ):
        _train_without_samples(strategy, 2, 3)
    return True


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_deepspeed_needs_a_sample_in_each(strategy):
    assert run_ranks(_too_few, 2, strategy) == [True, True]


def _constant():
    runtime = scenes.make_runtime("ddp")
    engine = runtime.setup(_network(), lambda groups: torch.optim.SGD(groups, lr=0.1))
    with pytest.raises(UsageError, match=r"depends on no parameter that is trained: compute it from engine\(\.\.\.\)"):
        engine.backward(torch.zeros((), dtype=torch.float64), weight=0)
    return True


def test_a_loss_that_is_a_constant():
    assert run_ranks(_constant, 1) == [True]
