"""Engines that are set up or called as they cannot be: one clear error, on every rank."""

import pytest
import torch
from torch import nn

import trainkit
from tests.engine.small import make_data, make_network, make_runtime
from trainkit.errors import ConfigError, UsageError
from trainkit.testing import run_ranks


def _unused():
    runtime = make_runtime()
    network = nn.ModuleDict({"used": nn.Linear(5, 1), "unused": nn.Linear(5, 1)})
    network.forward = lambda x: network["used"](x)
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
    batch = next(runtime.batches(make_data(), batch_size=12))
    with pytest.raises(UsageError, match=r"does not depend on 2 of 4 parameters.*'unused.weight'"):
        engine.backward(engine(batch.x).mean())
    return True


def test_a_parameter_that_the_loss_does_not_reach_is_named():
    assert run_ranks(_unused, 2) == [True, True]


def _misuse():
    runtime = make_runtime()
    network = make_network()
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1), grad_accumulation_steps=2)
    with pytest.raises(UsageError, match=r"step.* without a backward"):
        engine.step()
    with pytest.raises(UsageError, match="cannot know how many samples"):
        engine.backward(engine(torch.zeros(2, 5, dtype=torch.float64)).mean())
    runtime = make_runtime()
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1), grad_accumulation_steps=2)
    batch = next(runtime.batches(make_data(), batch_size=12))
    micros = engine.micro_batches(batch)
    engine.backward(engine(next(micros).x).mean())
    with pytest.raises(UsageError, match=r"second backward.* in one micro-batch"):
        engine.backward(engine(batch.x).mean())
    second = next(micros)
    with pytest.raises(UsageError, match="weight in some micro-batches of this step only"):
        engine.backward(engine(second.x).mean(), weight=3)
    with pytest.raises(UsageError, match="ended without a backward"):
        next(micros)
    with pytest.raises(UsageError, match=r"scalar loss.*, 1\]"):
        engine.backward(engine(second.x))
    with engine.frozen(), pytest.raises(UsageError, match="while it is frozen"):
        engine.backward(engine(batch.x).mean())
    with pytest.raises(UsageError, match="keeps no averaged weights"), engine.averaged():
        pass
    return True


@pytest.mark.parametrize("world_size", [1, 2])
def test_misuse_is_one_clear_error(world_size):
    assert run_ranks(_misuse, world_size) == [True] * world_size


def _one_loss_for_two_engines():
    runtime = make_runtime()
    networks = nn.Linear(5, 3).double(), nn.Linear(3, 1).double()
    first, second = (runtime.setup(network, lambda groups: torch.optim.SGD(groups, lr=0.1)) for network in networks)
    batch = next(runtime.batches(make_data(), batch_size=12))
    loss = second(first(batch.x)).mean()
    first.backward(loss)
    with pytest.raises(UsageError, match=r"'engine1' .* one loss updates one engine.* set up one engine .* a group of"):
        second.backward(loss)
    return True


@pytest.mark.parametrize("world_size", [1, 2])
def test_one_loss_for_two_engines_is_one_clear_error(world_size):
    assert run_ranks(_one_loss_for_two_engines, world_size) == [True] * world_size


def test_names_that_were_not_given_are_free_ones():
    runtime, engines = make_runtime(), []
    for name in (None, "engine1", None, "D", None):
        network = make_network()
        engines.append(runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1), name=name))
    assert [engine.name for engine in engines] == ["engine0", "engine1", "engine2", "D", "engine3"]


def test_an_attribute_of_another_optimizer_clips_nothing():
    class Foreign(torch.optim.SGD):
        max_grad_norm = 0.0  # "off", perhaps

    network = make_network()
    assert make_runtime().setup(network, Foreign(network.parameters(), lr=0.1)).max_grad_norm is None
    lamb = trainkit.optim.Lamb(network.parameters(), lr=0.1, max_grad_norm=0.5)
    assert make_runtime().setup(network, lamb).max_grad_norm == 0.5


def test_setup_refuses_what_cannot_be():
    runtime = make_runtime()
    network = make_network()
    adam = torch.optim.Adam(network.parameters())
    network(torch.zeros(1, 5)).sum().backward()
    adam.step()
    with pytest.raises(UsageError, match="has state"):
        runtime.setup(network, adam)
    with pytest.raises(ConfigError, match=r"lacks 2 parameters, such as '2.weight'"):
        runtime.setup(network, torch.optim.SGD(network.get_submodule("0").parameters(), lr=1))
    with pytest.raises(ConfigError, match="of another module"):
        runtime.setup(network, torch.optim.SGD([*network.parameters(), *make_network().parameters()], lr=1))
    for key, value in (("grad_accumulation_steps", 0), ("max_grad_norm", 0.0), ("ema_decay", 1.0)):
        with pytest.raises(ConfigError, match=f"{key}={value}"):
            runtime.setup(network, torch.optim.SGD(network.parameters(), lr=1), **{key: value})


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("precision", "fp23", "Did you mean 'fp32'"),
        ("precision", "tf32", "the CPU cannot"),
        ("strategy", "dpp", "Did you mean 'ddp'"),
        ("device", "tpu", "auto, cpu, cuda"),
        ("log_every", 0, "1 or more"),
    ],
)
def test_runtime_refuses_what_cannot_be(key, value, says):
    with pytest.raises(ConfigError, match=says):
        make_runtime(**{key: value})
