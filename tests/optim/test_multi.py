"""MultiOptimizer: the weights are those of its parts in plain PyTorch, under every strategy, and after a resume."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trainkit
from tests.strategy.scenes import EVERY, error, flat, make_runtime, precision_of, whole_state
from trainkit.data.order import Order
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks

NUM_STEPS, BATCH = 6, 8


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))


def _data(dtype):
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(64, 6, dtype=torch.float64, generator=generator).to(dtype)
    return drawn[:, :5], drawn[:, 5]


def _parts(kind, module):
    matrices = [p for p in module.parameters() if p.ndim == 2]
    others = [p for p in module.parameters() if p.ndim != 2]
    first = {
        "Adam": lambda: torch.optim.Adam(matrices, lr=0.02),
        "Muon": lambda: torch.optim.Muon(matrices, lr=0.02),
        "LBFGS": lambda: torch.optim.LBFGS(matrices),
    }[kind]()
    groups: list[dict[str, Any]] = [{"params": others[:1], "lr": 0.05}, {"params": others[1:]}]
    return first, torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def _factor(position, size):
    return 1.0 - position / 1000


def _oracle(kind):
    """Float64, the whole batch, each part stepped by itself."""
    module = _network().double()
    parts, (x, y), order = _parts(kind, module), _data(torch.float64), Order(64, 0)
    rates = [[group["lr"] for group in part.param_groups] for part in parts]
    for step in range(NUM_STEPS):
        chosen = torch.from_numpy(order.indices(torch.arange(step * BATCH, (step + 1) * BATCH).numpy()))
        module.zero_grad()
        F.mse_loss(module(x[chosen]).squeeze(-1), y[chosen]).backward()
        for part, own in zip(parts, rates, strict=True):
            for group, rate in zip(part.param_groups, own, strict=True):
                group["lr"] = rate * _factor(step * BATCH, BATCH)
            part.step()
    return flat({name: p.detach() for name, p in sorted(module.named_parameters())})


def _trained(kind, strategy, directory):
    """Weights of a run that was saved half way, and gone on with by another runtime."""
    for is_resumed in (False, True):
        runtime = make_runtime(strategy)
        module = _network()
        try:
            made = trainkit.optim.MultiOptimizer(*_parts(kind, module))
            engine = runtime.setup(module, made, schedule=_factor)
        except ConfigError as refused:
            return str(refused)
        start = runtime.load(directory, engine=engine).position if is_resumed else 0
        batches = runtime.batches(_data(runtime.dtype), batch_size=BATCH, start=start, num_steps=NUM_STEPS // 2)
        for batch in batches:
            x, y = batch.data
            engine.backward(F.mse_loss(engine(x).squeeze(-1), y))
            engine.step()
        if not is_resumed:
            runtime.save(directory, engine=engine)
            runtime.close()
    weights = flat(whole_state(engine)["module"])
    runtime.close()
    return weights


@pytest.mark.parametrize(("strategy", "ranks"), [("single", 1), *((strategy, 2) for strategy in EVERY), ("fsdp", 4)])
def test_its_weights_are_those_of_its_parts(strategy, ranks, tmp_path):
    for found in run_ranks(_trained, ranks, "Adam", strategy, str(tmp_path / "a")):
        assert error(found, _oracle("Adam")) < (1e-12 if precision_of(strategy) == "fp64" else 1e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero1", "zero3"])
def test_a_part_that_cannot_be_sharded_is_named(strategy, tmp_path):
    for found in run_ranks(_trained, 2, "Muon", strategy, str(tmp_path / "a")):
        if strategy == "ddp":  # it computes in bfloat16, with gradients that are summed in another order
            assert error(found, _oracle("Muon")) < 1e-2
        else:
            assert (
                f"strategy={strategy} gives an optimizer shards of parameters, and Muon does not update each" in found
            )


def test_what_it_cannot_take_is_one_line(tmp_path):
    module = _network()
    adam, sgd = _parts("Adam", module)
    (said,) = run_ranks(_trained, 1, "LBFGS", "single", str(tmp_path / "a"))
    assert "optimizer LBFGS evaluates the loss several times" in said
    with pytest.raises(ConfigError, match="takes two or more"):
        trainkit.optim.MultiOptimizer(adam)
    with pytest.raises(ConfigError, match=r"does not take trainkit\.optim\.lamb\.Lamb: use one of torch\.optim"):
        trainkit.optim.MultiOptimizer(adam, trainkit.optim.Lamb(module.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match=r"Adam, SGD.*more than one parameter group"):
        trainkit.optim.MultiOptimizer(adam, torch.optim.SGD(module.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match="without state, and Adagrad has some"):
        trainkit.optim.MultiOptimizer(sgd, torch.optim.Adagrad([torch.nn.Parameter(torch.zeros(1))]))
    both = trainkit.optim.MultiOptimizer(adam, sgd)
    with pytest.raises(ConfigError, match=r"optimizer=None: must be one of 0 \(Adam\), 1 \(SGD\)"):
        both.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    both.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "optimizer": 1})
    assert both.param_groups[-1]["momentum"] == 0.9
