"""Every strategy gives what one process gives on the whole batch: weights, averages, norms; growth; several engines."""

from typing import Any

import pytest
import torch
from torch import nn

import trainkit
from tests.strategy import scenes
from tests.strategy.scenes import error, tolerance
from trainkit.errors import ConfigError, UsageError
from trainkit.testing import RankError, run_ranks


@pytest.fixture(scope="module")
def plain():
    return {kind: scenes.train_plainly(kind) for kind in scenes.LOSSES}


@pytest.mark.parametrize("kind", scenes.LOSSES)
@pytest.mark.parametrize(("world_size", "grad_accumulation_steps"), scenes.SPLITS)
@pytest.mark.parametrize("strategy", scenes.EVERY)
def test_any_split_equals_one_process(plain, strategy, world_size, grad_accumulation_steps, kind):
    """A gradient penalty as a step's only loss, which DDP alone leaves local, among them."""
    for result in run_ranks(scenes.train, world_size, strategy, grad_accumulation_steps, kind):
        for ours, reference in zip(result, plain[kind], strict=True):
            assert error(ours, reference) < tolerance(strategy)


@pytest.mark.parametrize("kind", scenes.LOSSES)
@pytest.mark.parametrize(("world_size", "grad_accumulation_steps"), [(2, 2), (4, 1)])
@pytest.mark.parametrize("strategy", ["fsdp", "hsdp"])
def test_block_by_block(plain, strategy, world_size, grad_accumulation_steps, kind):
    for result in run_ranks(scenes.train, world_size, strategy, grad_accumulation_steps, kind, True):
        for ours, reference in zip(result, plain[kind], strict=True):
            assert error(ours, reference) < tolerance(strategy)


def _two_engines(strategy):
    """A generator learns against a critic: turns in which each is frozen, and a parameter that its user froze."""
    runtime = scenes.make_runtime(strategy)
    torch.manual_seed(3)
    generator, critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5)), scenes.network()
    critic[0].bias.requires_grad_(False)
    G = runtime.setup(generator, lambda groups: torch.optim.SGD(groups, lr=0.1), ema_decay=0.9)
    D = runtime.setup(critic, lambda groups: torch.optim.SGD(groups, lr=0.1))
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=8, num_steps=4):
        with torch.no_grad():
            fake = G(runtime.randn(batch, 3, name="D's"))
        _, gradient = D.input_gradient(batch.x)
        D.backward(D(fake).mean() - D(batch.x).mean() + (gradient.norm(dim=1) - 1).square().mean())
        D.step()
        before = scenes.flat(scenes.whole_state(D)["module"])
        with D.frozen():
            G.backward(-D(G(runtime.randn(batch, 3, name="G's"))).mean())
        G.step()
        assert torch.equal(before, scenes.flat(scenes.whole_state(D)["module"]))
    assert [p.requires_grad for p in critic.parameters()] == [True, False, True, True, True]
    states = scenes.whole_state(G), scenes.whole_state(D)
    return torch.cat(
        [scenes.flat(states[0]["module"]), scenes.flat(states[0]["average"]), scenes.flat(states[1]["module"])]
    )


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("strategy", scenes.EVERY)
def test_two_engines_in_turns(strategy, world_size):
    alone = run_ranks(_two_engines, 1, "ddp")[0]
    start = scenes.in_order_of_names(scenes.network())
    assert error(alone[-len(start) :], start) > 0.01  # D has learnt, so that equality says something
    for result in run_ranks(_two_engines, world_size, strategy):
        assert error(result, alone) < tolerance(strategy)


class _Tower(nn.Module):
    def __init__(self, num_layers):
        super().__init__()
        torch.manual_seed(num_layers)
        self.layers = nn.ModuleDict({str(i): nn.Linear(5, 5) for i in range(num_layers)})

    def forward(self, x):
        for layer in self.layers.values():
            x = torch.tanh(layer(x))
        return x


def _grow(strategy, inherit_optimizer):
    """From one layer to two after three of six steps; the second layer begins anew, the first goes on."""
    runtime = scenes.make_runtime(strategy)
    engine = runtime.setup(_Tower(1), lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9), ema_decay=0.9)
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=12, num_steps=6):
        if batch.position == 36:
            old = engine
            engine = runtime.setup(
                _Tower(2),
                lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
                ema_decay=0.9,
                inherit=old,
                inherit_optimizer=inherit_optimizer,
            )
            kept = {key for key in scenes.whole_state(engine)["optimizer"] if key.startswith("layers.0")}
            assert bool(kept) == inherit_optimizer
            with pytest.raises(UsageError, match="took its place"):
                old(batch.x)
        engine.backward((engine(batch.x) ** 2).mean())
        engine.step()
    state = scenes.whole_state(engine)
    return torch.cat([scenes.flat(state["module"]), scenes.flat(state["average"])])


@pytest.mark.parametrize("inherit_optimizer", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("strategy", scenes.EVERY)
def test_growth_takes_over_weights_averages_and_optimizer_state(strategy, world_size, inherit_optimizer):
    alone = run_ranks(_grow, 1, "ddp", inherit_optimizer)[0]
    for result in run_ranks(_grow, world_size, strategy, inherit_optimizer):
        assert error(result, alone) < tolerance(strategy)


def test_what_was_inherited_matters():
    with_state, without = (run_ranks(_grow, 1, "ddp", kept)[0] for kept in (True, False))
    assert error(with_state, without) > 1e-4


def _grow_with_adam(strategy):
    runtime = scenes.make_runtime(strategy)
    old = runtime.setup(_Tower(1), lambda groups: torch.optim.Adam(groups))
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=12, num_steps=2):
        old.backward((old(batch.x) ** 2).mean())
        old.step()
    runtime.setup(_Tower(2), lambda groups: torch.optim.Adam(groups), inherit=old)


def test_an_own_step_count_cannot_be_in_a_flat_tensor():
    """Adam counts the steps of each parameter, and ZeRO keeps all parameters in one."""
    with pytest.raises(RankError, match=r"'step' differs .* use strategy=fsdp or ddp, or setup") as raised:
        run_ranks(_grow_with_adam, 2, "zero2")
    assert raised.value.kind == "ConfigError"
    assert run_ranks(_grow_with_adam, 2, "fsdp") == [None, None]


def _setup_twice(strategy):
    runtime = scenes.make_runtime(strategy)
    module = scenes.network()
    old = runtime.setup(module, lambda groups: torch.optim.SGD(groups, lr=0.1))
    with pytest.raises(UsageError, match=r"make a new module .* or use strategy=ddp"):
        runtime.setup(module, lambda groups: torch.optim.SGD(groups, lr=0.1), inherit=old)
    return True


@pytest.mark.parametrize("strategy", scenes.SHARDED)
def test_a_module_that_is_spread_already_is_refused(strategy):
    assert run_ranks(_setup_twice, 2, strategy) == [True, True]


def _replaced(strategy):
    """An instance over two groups: the strategy gives the module other parameters, the groups stay what they were."""
    runtime = scenes.make_runtime(strategy)
    module = scenes.network()
    matrices = [p for p in module.parameters() if p.ndim == 2]
    rest = [p for p in module.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": rest, "lr": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    engine = runtime.setup(module, optimizer)
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=12, num_steps=2):
        engine.backward((engine(batch.x) ** 2).mean())
        engine.step()
    assert engine.optimizer is optimizer
    return scenes.whole_state(engine)["module"]


@pytest.mark.parametrize("strategy", scenes.SHARDED)
def test_groups_of_an_optimizer_survive_replaced_parameters(strategy):
    start = dict(scenes.network().named_parameters())
    for tensors in run_ranks(_replaced, 2, strategy):
        for name, tensor in tensors.items():
            assert torch.equal(tensor.double(), start[name].double()) == (start[name].ndim == 1), name


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: trainkit.HSDP(shard_size=3), r"strategy.shard_size=3 does not divide .* must be one of 1"),
        (lambda: trainkit.FSDP(cpu_offload=True), r"strategy.cpu_offload=true: there is no GPU"),
        (
            lambda: trainkit.Zero2(config={"gradient_clipping": 1.0}),
            r"strategy.config.gradient_clipping=1.0: trainkit sets it already, to 0.0",
        ),
        (
            lambda: trainkit.Zero2(config={"zero_optimization": {"stage": 3}}),
            r"strategy.config.zero_optimization.stage=3: trainkit sets it already, to 2",
        ),
    ],
)
def test_arguments_that_cannot_be(make, says):
    with pytest.raises(ConfigError, match=says):
        trainkit.Runtime(strategy=make(), device="cpu", tracker=trainkit.Tracker())


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_float64_is_refused_where_it_would_become_float32(strategy):
    with pytest.raises(ConfigError, match=rf"precision=fp64 with strategy={strategy}: .* computes in float32"):
        trainkit.Runtime(strategy=strategy, precision="fp64", device="cpu", tracker=trainkit.Tracker())
