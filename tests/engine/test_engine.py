"""Engine semantics on 1, 2 and 4 ranks, against a plain float64 loop over the full batch in one process."""

import pytest
import torch
from torch import nn

import trainkit
from trainkit.data.order import Order
from trainkit.errors import ConfigError, UsageError
from trainkit.testing import run_ranks

BATCH, NUM_STEPS = 12, 10


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))


def _data() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(60, 5, dtype=torch.float64, generator=generator),
        "y": torch.randn(60, dtype=torch.float64, generator=generator),
        # Items a sample: some have none, so that shares differ much in weight.
        "num": torch.randint(0, 4, (60,), generator=generator),
    }


def _masked_loss(output, micro):
    """The mean of squared errors, each sample counted `num` times; and the count."""
    count = micro.num.sum()
    squared = (output.squeeze(-1) - micro.y) ** 2
    return (squared * micro.num).sum() / count.clamp(min=1), count


def _runtime(**kwargs):
    return trainkit.Runtime(**{"precision": "fp64", "device": "cpu", "tracker": trainkit.Tracker(), **kwargs})


def _weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def _train(grad_accumulation_steps=1, batch_size=BATCH, strategy="ddp", deterministic=False, num_steps=NUM_STEPS):
    runtime = _runtime(strategy=strategy, deterministic=deterministic)
    network = _network()
    engine = runtime.setup(
        network,
        torch.optim.AdamW(network.parameters(), lr=0.05),
        max_grad_norm=0.1,
        schedule=trainkit.Schedule(warmup=3, total=20),
        ema_decay=0.9,
        grad_accumulation_steps=grad_accumulation_steps,
    )
    told = []
    for batch in runtime.batches(_data(), batch_size=batch_size, num_steps=num_steps):
        for micro in engine.micro_batches(batch):
            loss, count = _masked_loss(engine(micro.x), micro)
            engine.backward(loss, weight=count)
        metrics = engine.step().metrics()
        told.append([float(metrics[name]) for name in ("loss", "grad_norm", "lr")])
    with engine.averaged() as module:
        averaged = _weights(module)
    return _weights(network), averaged, torch.tensor(told)


def _plain(batch_size=BATCH):
    """The same in bare PyTorch, one process, whole batches."""
    order = Order(60, seed=0)
    data, network = _data(), _network().double()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05)
    average, told = _weights(network), []
    for step in range(NUM_STEPS):
        indices = torch.from_numpy(order.indices(torch.arange(step * batch_size, (step + 1) * batch_size).numpy()))
        num = data["num"][indices]
        loss = ((network(data["x"][indices]).squeeze(-1) - data["y"][indices]) ** 2 * num).sum() / num.sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        lr = 0.05 * ((step + 1) / 3 if step < 2 else 1 - (step - 3) / 17 if step > 3 else 1)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        average = 0.9 * average + 0.1 * _weights(network)
        told.append([loss.item(), norm.item(), lr])
    return _weights(network), average, torch.tensor(told)


@pytest.fixture(scope="module")
def plain():
    return _plain()


def _error(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(
    ("world_size", "grad_accumulation_steps"), [(1, 1), (1, 4), (2, 1), (2, 3), (4, 1), (4, 3), (1, 12)]
)
def test_weights_metrics_averages_equal_a_full_batch_loop(plain, world_size, grad_accumulation_steps):
    for weights, averaged, told in run_ranks(_train, world_size, grad_accumulation_steps):
        assert _error(weights, plain[0]) < 1e-12
        assert _error(averaged, plain[1]) < 1e-12
        assert _error(told, plain[2]) < 1e-12


@pytest.mark.parametrize("world_size", [2, 4])
def test_uneven_shares(world_size):
    """13 samples on 2 ranks are 7 and 6, on 4 ranks 4, 3, 3 and 3."""
    expected = _plain(13)
    for weights, _, _ in run_ranks(_train, world_size, 1, 13):
        assert _error(weights, expected[0]) < 1e-12


def _train_samples_mean():
    """Without weights every sample counts the same, although 7 + 6 samples lie on two ranks."""
    runtime = _runtime()
    network = _network()
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
    for batch in runtime.batches(_data(), batch_size=13, num_steps=3):
        engine.backward(((engine(batch.x).squeeze(-1) - batch.y) ** 2).mean())
        engine.step()
    return _weights(network)


def test_the_default_weight_is_the_number_of_samples():
    alone, split = run_ranks(_train_samples_mean, 1)[0], run_ranks(_train_samples_mean, 2)
    assert all(_error(weights, alone) < 1e-12 for weights in split)


def _empty_share(world_size):
    """All items lie in the first sample: the other ranks' means are over none, which PyTorch makes NaN."""
    runtime = _runtime()
    network = _network()
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
    data = {"x": _data()["x"][:4], "y": _data()["y"][:4], "num": torch.tensor([3, 0, 0, 0])}
    for batch in runtime.batches(data, batch_size=4, num_steps=2):
        some = batch.num > 0
        loss = nn.functional.mse_loss(engine(batch.x).squeeze(-1)[some], batch.y[some])
        assert bool(loss.isnan()) == (not some.any())
        engine.backward(loss, weight=batch.num.sum())
        result = engine.step()
        assert torch.isfinite(result.loss)
    return _weights(network)


def test_a_share_without_items_takes_part_and_adds_nothing():
    alone, split = run_ranks(_empty_share, 1, 1)[0], run_ranks(_empty_share, 4, 4)
    assert all(_error(weights, alone) < 1e-12 for weights in split)


def _collectives():
    import torch.distributed as dist

    runtime = _runtime()
    network = _network()
    engine = runtime.setup(
        network, torch.optim.SGD(network.parameters(), lr=0.1), max_grad_norm=1.0, grad_accumulation_steps=3
    )
    real, calls = dist.all_reduce, []

    def counted(tensor, *args, **kwargs):
        calls.append(tensor.numel())
        return real(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        for batch in runtime.batches(_data(), batch_size=12, num_steps=4):
            for micro in engine.micro_batches(batch):
                engine.backward(engine(micro.x).mean())
            engine.step()
    finally:
        dist.all_reduce = real
    return calls


def test_one_small_reduction_a_step_besides_the_gradients():
    assert run_ranks(_collectives, 2) == [[2] * 4] * 2


def _gradient_penalty(penalty_alone):
    """A critic's loss with a gradient penalty; `penalty_alone` leaves the critic's own outputs out of the loss."""
    runtime = _runtime()
    network = _network()
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
    for batch in runtime.batches(_data(), batch_size=12, num_steps=4):
        _, gradient = engine.input_gradient(batch.x)
        loss = ((gradient.norm(dim=1) - 1) ** 2).mean()
        if not penalty_alone:
            loss = 10 * loss + engine(batch.x).mean() + 0.1 * (engine(batch.x * 0.5) ** 2).mean()
        engine.backward(loss)
        engine.step()
    return _weights(network)


@pytest.mark.parametrize("penalty_alone", [False, True])
@pytest.mark.parametrize("world_size", [2, 4])
def test_gradient_penalty_equals_one_process(penalty_alone, world_size):
    network, data = _network().double(), _data()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    order = Order(60, seed=0)
    for step in range(4):
        x = data["x"][torch.from_numpy(order.indices(torch.arange(step * 12, step * 12 + 12).numpy()))].requires_grad_()
        (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        loss = ((gradient.norm(dim=1) - 1) ** 2).mean()
        if not penalty_alone:
            loss = 10 * loss + network(x).mean() + 0.1 * (network(x * 0.5) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for weights in run_ranks(_gradient_penalty, world_size, penalty_alone):
        assert _error(weights, _weights(network)) < 1e-12


def _frozen():
    runtime = _runtime()
    generator, critic = nn.Linear(3, 5).double(), _network()
    critic.get_parameter("0.bias").requires_grad_(False)  # frozen by the user: must stay so
    G = runtime.setup(generator, torch.optim.SGD(generator.parameters(), lr=0.1))
    D = runtime.setup(critic, torch.optim.SGD([p for p in critic.parameters() if p.requires_grad], lr=0.1))
    before = _weights(critic)
    for batch in runtime.batches(torch.zeros(8, 1), batch_size=4, num_steps=2):
        fake = G(runtime.randn(batch, 3, name="latent"))
        with D.frozen():
            G.backward(D(fake).mean())
        assert all(p.grad is None for p in critic.parameters())
        G.step()
    assert torch.equal(before, _weights(critic))
    assert [p.requires_grad for p in critic.parameters()] == [True, False, True, True]
    return _weights(generator)


def test_a_frozen_engine_gets_no_gradient_and_passes_it_on():
    alone = run_ranks(_frozen, 1)[0]
    assert not torch.equal(alone, _weights(nn.Linear(3, 5).double()))
    assert all(_error(weights, alone) < 1e-12 for weights in run_ranks(_frozen, 2))


class _Growing(nn.Module):
    def __init__(self, num_layers):
        super().__init__()
        torch.manual_seed(num_layers)
        self.layers = nn.ModuleDict({str(i): nn.Linear(5, 5) for i in range(num_layers)})

    def forward(self, x):
        for layer in self.layers.values():
            x = torch.tanh(layer(x))
        return x


def _grow(inherit_optimizer):
    runtime = _runtime()
    small = _Growing(1)
    engine = runtime.setup(small, lambda groups: torch.optim.Adam(groups, lr=0.01), ema_decay=0.9)
    big = _Growing(2)
    for batch in runtime.batches(_data(), batch_size=12, num_steps=6):
        if batch.position == 36:
            big.load_state_dict(small.state_dict(), strict=False)
            old = engine
            engine = runtime.setup(
                big,
                lambda groups: torch.optim.Adam(groups, lr=0.01),
                ema_decay=0.9,
                inherit=old,
                inherit_optimizer=inherit_optimizer,
            )
            kept = engine.optimizer.state[big.layers["0"].weight] if inherit_optimizer else {}
            assert bool(kept) == inherit_optimizer
            assert big.layers["1"].weight not in engine.optimizer.state
            with pytest.raises(UsageError, match="took its place"):
                old(batch.x)
        engine.backward((engine(batch.x) ** 2).mean())
        engine.step()
    if inherit_optimizer:
        assert engine.optimizer.state[big.layers["0"].weight]["step"] == 6
    assert engine.num_updates == 6
    with engine.averaged() as module:
        return torch.cat([_weights(big), _weights(module)])


@pytest.mark.parametrize("inherit_optimizer", [True, False])
def test_growth_keeps_optimizer_and_averages_on_any_ranks(inherit_optimizer):
    alone = run_ranks(_grow, 1, inherit_optimizer)[0]
    for world_size in (2, 4):
        assert all(_error(weights, alone) < 1e-12 for weights in run_ranks(_grow, world_size, inherit_optimizer))


def _grow_in_place():
    """The same module with a layer added: the old wrapper's hooks must be gone."""
    runtime = _runtime()
    network = _Growing(1)
    engine = runtime.setup(network, lambda groups: torch.optim.SGD(groups, lr=0.1))
    for batch in runtime.batches(_data(), batch_size=12, num_steps=4):
        if batch.position == 24:
            torch.manual_seed(3)
            network.layers["1"] = nn.Linear(5, 5)
            engine = runtime.setup(network, lambda groups: torch.optim.SGD(groups, lr=0.1), inherit=engine)
        engine.backward((engine(batch.x) ** 2).mean())
        engine.step()
    return _weights(network)


def test_growth_in_place():
    alone = run_ranks(_grow_in_place, 1)[0]
    assert all(_error(weights, alone) < 1e-12 for weights in run_ranks(_grow_in_place, 2))


class _Overflow(torch.autograd.Function):
    """The identity whose gradient is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, float("inf"))


def _overflow():
    """On step 2 rank 0's gradient of D overflows; G's does not."""
    runtime = _runtime(precision=trainkit.Precision(name="fp16", initial_scale=8.0, growth_interval=3))
    networks = _network(), _network()
    G, D = (
        runtime.setup(n, torch.optim.SGD(n.parameters(), lr=0.1), schedule=trainkit.Schedule(total=10))
        for n in networks
    )
    data = {"x": _data()["x"].float()}
    told = []
    for step, batch in enumerate(runtime.batches(data, batch_size=12, num_steps=5)):
        before = _weights(D.module)
        output = D(batch.x).float()
        if step == 2 and runtime.ranks.rank == 0:
            output = _Overflow.apply(output)
        D.backward(output.mean())
        result = D.step()
        G.backward(G(batch.x).float().mean())
        other = G.step()
        assert torch.equal(before, _weights(D.module)) == result.skipped
        told.append((result.skipped, D.scaler.scale, other.skipped, G.scaler.scale, round(result.lr, 6)))
    return told, D.num_updates


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_overflow_on_one_rank_skips_that_engines_step_on_all(world_size):
    for told, num_updates in run_ranks(_overflow, world_size):
        assert [skipped for skipped, *_ in told] == [False, False, True, False, False]
        assert [scale for _, scale, *_ in told] == [8, 8, 4, 4, 4]
        assert [skipped for _, _, skipped, *_ in told] == [False] * 5
        assert [scale for _, _, _, scale, _ in told] == [8, 8, 16, 16, 16]
        assert [lr for *_, lr in told] == [0.1, 0.09, 0.08, 0.07, 0.06]  # advances on the skipped step too
        assert num_updates == 4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_follows_float32(precision):
    def train(name):
        runtime = _runtime(precision=trainkit.Precision(name=name, initial_scale=1024.0))
        network = _network()
        engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
        data = {"x": _data()["x"].float(), "y": _data()["y"].float()}
        for batch in runtime.batches(data, batch_size=12, num_steps=10):
            engine.backward(((engine(batch.x).float().squeeze(-1) - batch.y) ** 2).mean())
            engine.step()
        return _weights(network)

    assert 0 < _error(train(precision), train("fp32")) < 0.02


def _dropout():
    runtime = _runtime()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 64), trainkit.ops.Dropout(0.3), nn.Linear(64, 1), trainkit.ops.Dropout(0.1))
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1), grad_accumulation_steps=3)
    for batch in runtime.batches(_data(), batch_size=12, num_steps=3):
        for micro in engine.micro_batches(batch):
            engine.backward((engine(micro.x) ** 2).mean())
        engine.step()
    return _weights(network)


def test_dropout_masks_do_not_depend_on_the_split():
    alone = run_ranks(_dropout, 1)[0]
    for world_size in (2, 4):
        assert all(_error(weights, alone) < 1e-12 for weights in run_ranks(_dropout, world_size))


def test_dropout_drops_its_share_and_keeps_the_mean():
    layer = trainkit.ops.Dropout(0.25)
    layer.see(1, torch.arange(100))
    out = layer(torch.ones(100, 1000))
    assert abs((out == 0).double().mean() - 0.25) < 5 * (0.25 * 0.75 / 1e5) ** 0.5
    assert torch.allclose(out[out != 0], torch.tensor(1 / 0.75))
    assert torch.equal(layer(torch.ones(100, 1000)), out)
    with pytest.raises(UsageError, match="has the positions of 100 samples and an input of 3"):
        layer(torch.ones(3, 2))


def _unused():
    runtime = _runtime()
    network = nn.ModuleDict({"used": nn.Linear(5, 1), "unused": nn.Linear(5, 1)})
    network.forward = lambda x: network["used"](x)
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
    batch = next(runtime.batches(_data(), batch_size=12))
    with pytest.raises(UsageError, match=r"does not depend on 2 of 4 parameters.*'unused.weight'"):
        engine.backward(engine(batch.x).mean())
    return True


def test_a_parameter_that_the_loss_does_not_reach_is_named():
    assert run_ranks(_unused, 2) == [True, True]


def _misuse():
    runtime = _runtime()
    network = _network()
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1), grad_accumulation_steps=2)
    with pytest.raises(UsageError, match=r"step.* without a backward"):
        engine.step()
    with pytest.raises(UsageError, match="cannot know how many samples"):
        engine.backward(engine(torch.zeros(2, 5, dtype=torch.float64)).mean())
    runtime = _runtime()
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1), grad_accumulation_steps=2)
    batch = next(runtime.batches(_data(), batch_size=12))
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
    runtime = _runtime()
    networks = nn.Linear(5, 3).double(), nn.Linear(3, 1).double()
    first, second = (runtime.setup(network, lambda groups: torch.optim.SGD(groups, lr=0.1)) for network in networks)
    batch = next(runtime.batches(_data(), batch_size=12))
    loss = second(first(batch.x)).mean()
    first.backward(loss)
    with pytest.raises(UsageError, match=r"'engine1' .* one loss updates one engine.* set up one engine .* a group of"):
        second.backward(loss)
    return True


@pytest.mark.parametrize("world_size", [1, 2])
def test_one_loss_for_two_engines_is_one_clear_error(world_size):
    assert run_ranks(_one_loss_for_two_engines, world_size) == [True] * world_size


def test_names_that_were_not_given_are_free_ones():
    runtime, engines = _runtime(), []
    for name in (None, "engine1", None, "D", None):
        network = _network()
        engines.append(runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1), name=name))
    assert [engine.name for engine in engines] == ["engine0", "engine1", "engine2", "D", "engine3"]


def test_an_attribute_of_another_optimizer_clips_nothing():
    class Foreign(torch.optim.SGD):
        max_grad_norm = 0.0  # "off", perhaps

    network = _network()
    assert _runtime().setup(network, Foreign(network.parameters(), lr=0.1)).max_grad_norm is None
    lamb = trainkit.optim.Lamb(network.parameters(), lr=0.1, max_grad_norm=0.5)
    assert _runtime().setup(network, lamb).max_grad_norm == 0.5


def test_setup_refuses_what_cannot_be():
    runtime = _runtime()
    network = _network()
    adam = torch.optim.Adam(network.parameters())
    network(torch.zeros(1, 5)).sum().backward()
    adam.step()
    with pytest.raises(UsageError, match="has state"):
        runtime.setup(network, adam)
    with pytest.raises(ConfigError, match=r"lacks 2 parameters, such as '2.weight'"):
        runtime.setup(network, torch.optim.SGD(network.get_submodule("0").parameters(), lr=1))
    with pytest.raises(ConfigError, match="of another module"):
        runtime.setup(network, torch.optim.SGD([*network.parameters(), *_network().parameters()], lr=1))
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
        _runtime(**{key: value})
