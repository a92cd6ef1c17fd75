"""Masks against another way to choose them, and weights that are 0 under every strategy and after a resume."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trainkit
from tests.strategy import scenes
from trainkit.errors import ConfigError, UsageError
from trainkit.optim import AdamW, Lamb
from trainkit.prune import Cubic, Magnitude, lowest
from trainkit.testing import run_ranks

NUM_STEPS = 8
SCHEDULE: dict[str, Any] = {"final": 0.75, "begin": 2, "end": 6, "every": 2}
OPTIMIZERS = {
    "lamb": lambda groups: Lamb(groups, lr=0.01),
    "adamw": lambda groups: AdamW(groups, lr=0.01),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
}


def _smallest(values, count):
    """What `lowest` chooses, by a stable sort."""
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(values, kind="stable")[:count]] = True
    return chosen.tolist()


@pytest.mark.parametrize("count", [0, 1, 7, 50, 100])
def test_lowest_are_those_of_a_stable_sort(count):
    values = torch.randint(0, 9, (100,), generator=torch.Generator().manual_seed(count)).float()
    assert lowest(values, count).tolist() == _smallest(values.numpy(), count)


def test_the_schedule_is_the_papers():
    schedule = Cubic(initial=0.2, final=0.9, begin=10, end=100, every=30)
    asked = [step for step in range(200) if schedule(step) is not None]
    assert asked == [10, 40, 70, 100]
    for step in asked:
        assert schedule(step) == pytest.approx(0.9 + (0.2 - 0.9) * (1 - (step - 10) / (3 * 30)) ** 3)


def _toy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4, bias=False))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_smallest_weights_go(scope):
    module = _toy()
    before = [part.weight.detach().clone() for part in (module[0], module[2])]
    pruner = Magnitude(
        module, torch.optim.SGD(module.parameters(), lr=0.1), schedule=Cubic(final=0.5, begin=3, end=3), scope=scope
    )
    assert not pruner.step(2) and pruner.sparsity == 0.0
    assert pruner.step(3) and pruner.sparsity == 0.5
    flat = [weight.flatten().abs().numpy() for weight in before]
    if scope == "global":
        expected = _smallest(np.concatenate(flat), 72)
    else:
        expected = _smallest(flat[0], 48) + _smallest(flat[1], 24)
    now = torch.cat([module[0].weight.flatten(), module[2].weight.flatten()])
    assert (now == 0).tolist() == expected
    assert torch.equal(now, torch.cat([weight.flatten() for weight in before]).masked_fill(torch.tensor(expected), 0.0))


def test_two_of_four():
    module = _toy()
    before = module[0].weight.detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    pruner = Magnitude(module, optimizer, schedule=Cubic(final=0.5, begin=0, end=4, every=2), structure="2:4")
    pruner.step(2)
    assert pruner.sparsity == pytest.approx(0.4375, abs=0.02)
    pruner.step(4)
    groups, kept = before.view(-1, 4), pruner.mask("0.weight").view(-1, 4)
    for group, keeps in zip(groups.tolist(), kept.tolist(), strict=True):
        assert sorted(map(abs, group))[2:] == sorted(abs(w) for w, keep in zip(group, keeps, strict=True) if keep)
    assert pruner.sparsity == 0.5


def _train(strategy, optimizer, scope, structure="unstructured", directory=None, resume_at=None):
    """(weights, sparsity, averages) of a short run; with `resume_at`, one that is saved there and begun anew."""
    schedule = SCHEDULE if structure == "unstructured" else {**SCHEDULE, "final": 0.5}
    torch.manual_seed(1)
    runtime = scenes.make_runtime(strategy)
    start, step = 0, 0
    for last in [resume_at, NUM_STEPS] if resume_at else [NUM_STEPS]:
        module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 1))
        engine = runtime.setup(module, OPTIMIZERS[optimizer], ema_decay=0.5, name="toy")
        layers = (nn.Linear,)
        pruner = Magnitude(engine, schedule=Cubic(**schedule), modules=layers, scope=scope)
        if start:
            start = runtime.load(directory, toy=engine).position
        for batch in runtime.batches(
            scenes.data(runtime.dtype), batch_size=scenes.BATCH, num_steps=last - step, start=start
        ):
            engine.backward(((engine(batch.x).squeeze(-1) - batch.y) ** 2).mean())
            engine.step()
            step += 1
            pruner.step(step)
        start = runtime.position
        if last == resume_at:
            runtime.save(directory, toy=engine)
    state = scenes.whole_state(engine)
    masks = {name: pruner.mask(name).clone() for name in pruner.layers}
    zeros = {name: state["module"][name] == 0 for name in masks}
    assert all(torch.equal(zeros[name].cpu(), ~masks[name]) for name in masks), "not exactly what is masked is 0"
    assert all(state["average"][name][~masks[name]].eq(0).all() for name in masks)
    weights = {name: state["module"][name] for name in sorted(masks)}
    return scenes.flat(weights), pruner.sparsity, torch.cat([masks[name].flatten() for name in sorted(masks)])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_ranks_agree_with_one_process(optimizer, scope):
    alone, sparsity, mask = _train("single", optimizer, scope)
    assert sparsity == pytest.approx(0.75, abs=0.01)
    for strategy in ("ddp", "fsdp"):
        for weights, same, its_mask in run_ranks(_train, 2, strategy, optimizer, scope):
            assert same == sparsity and torch.equal(its_mask, mask)
            assert scenes.error(weights, alone) < 1e-9


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_zero_masks_what_it_holds(strategy, optimizer):
    (weights, sparsity, mask), (others, _, other) = run_ranks(_train, 2, strategy, optimizer, "global")
    assert sparsity == pytest.approx(0.75, abs=0.01) and torch.equal(mask, other) and torch.equal(weights, others)
    alone, _, its_mask = _train("single", optimizer, "global")
    assert torch.equal(mask, its_mask)
    assert scenes.error(weights, alone) < 1e-5


@pytest.mark.parametrize(("strategy", "world_size"), [("single", 1), ("ddp", 2), ("fsdp", 2)])
@pytest.mark.parametrize("optimizer", ["lamb", "momentum"])
def test_a_resumed_run_has_the_same_masks(strategy, world_size, optimizer, tmp_path):
    for resume_at in (4, 5):  # with and without new masks since
        straight = run_ranks(_train, world_size, strategy, optimizer, "layer")[0]
        resumed = run_ranks(
            _train, world_size, strategy, optimizer, "layer", "unstructured", tmp_path / f"{resume_at}", resume_at
        )[0]
        assert torch.equal(resumed[0], straight[0]) and torch.equal(resumed[2], straight[2])


def test_a_pruned_network_still_classifies():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, generator=generator)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = AdamW(module.parameters(), lr=0.02, weight_decay=0.0)
    pruner = Magnitude(module, optimizer, schedule=Cubic(final=0.8, begin=50, end=200, every=10))
    for step in range(1, 301):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), labels).backward()
        optimizer.step()
        pruner.step(step)
    zeros = sum(int((weight == 0).sum()) for weight in module.parameters() if weight.ndim == 2)
    assert zeros == round(0.8 * 512) + round(0.8 * 128)
    assert float((module(x).argmax(1) == labels).float().mean()) > 0.97
    pruner.remove()
    assert list(module.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_masked_layer_gets_its_mask():
    layer = trainkit.ops.MaskedLinear(8, 4)
    module = nn.Sequential(layer)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    Magnitude(module, optimizer, schedule=Cubic(final=0.5, begin=0, end=0)).step(0)
    assert layer.sparsity == 0.5 and torch.equal(layer.weight == 0, ~layer.mask)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("scope='layers'.*'layer'", {"scope": "layers"}),
        ("structure='2:5'", {"structure": "2:5"}),
        ("masks half", {"schedule": Cubic(final=0.6, begin=0, end=1), "structure": "2:4"}),
        (r"'0.weight' has shape \[4, 6\]", {"structure": "2:4"}),
        ("Conv2d", {"modules": (nn.Conv2d,)}),
    ],
)
def test_what_cannot_be_is_said(text, given):
    module = nn.Sequential(nn.Linear(6, 4))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=text):
        Magnitude(module, optimizer, **{"schedule": Cubic(final=0.5, begin=0, end=1), **given})
    with pytest.raises(UsageError, match="needs its optimizer"):
        Magnitude(module, schedule=Cubic(final=0.5, begin=0, end=1))


@pytest.mark.parametrize("given", [{"final": 1.0}, {"begin": 3}, {"every": 0}, {"initial": 0.6}])
def test_schedules_that_cannot_be(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        Cubic(**{"final": 0.5, "begin": 0, "end": 1, **given})
