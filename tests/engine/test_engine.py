"""Engine semantics on 1, 2 and 4 ranks, against a plain float64 loop over the full batch in one process."""

import pytest
import torch
from torch import nn

import trainkit
from tests.engine.small import distance, make_data, make_network, make_runtime, masked_loss, weights_of
from trainkit.data.order import Order
from trainkit.errors import UsageError
from trainkit.testing import run_ranks

BATCH, NUM_STEPS = 12, 10


def _train(grad_accumulation_steps=1, batch_size=BATCH, strategy="ddp", deterministic=False, num_steps=NUM_STEPS):
    runtime = make_runtime(strategy=strategy, deterministic=deterministic)
    network = make_network()
    engine = runtime.setup(
        network,
        torch.optim.AdamW(network.parameters(), lr=0.05),
        max_grad_norm=0.1,
        schedule=trainkit.Schedule(warmup=3, total=20),
        ema_decay=0.9,
        grad_accumulation_steps=grad_accumulation_steps,
    )
    logged = []
    for batch in runtime.batches(make_data(), batch_size=batch_size, num_steps=num_steps):
        for micro in engine.micro_batches(batch):
            loss, count = masked_loss(engine(micro.x), micro)
            engine.backward(loss, weight=count)
        metrics = engine.step().metrics()
        logged.append([float(metrics[name]) for name in ("loss", "grad_norm", "lr")])
    with engine.averaged() as module:
        averaged = weights_of(module)
    return weights_of(network), averaged, torch.tensor(logged)


def _plain(batch_size=BATCH):
    """The same in bare PyTorch, one process, whole batches."""
    order = Order(60, seed=0)
    data, network = make_data(), make_network().double()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05)
    average, logged = weights_of(network), []
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
        average = 0.9 * average + 0.1 * weights_of(network)
        logged.append([loss.item(), norm.item(), lr])
    return weights_of(network), average, torch.tensor(logged)


@pytest.fixture(scope="module")
def plain():
    return _plain()


@pytest.mark.parametrize(
    ("world_size", "grad_accumulation_steps"), [(1, 1), (1, 4), (2, 1), (2, 3), (4, 1), (4, 3), (1, 12)]
)
def test_weights_metrics_averages_equal_a_full_batch_loop(plain, world_size, grad_accumulation_steps):
    for weights, averaged, logged in run_ranks(_train, world_size, grad_accumulation_steps):
        assert distance(weights, plain[0]) < 1e-12
        assert distance(averaged, plain[1]) < 1e-12
        assert distance(logged, plain[2]) < 1e-12


@pytest.mark.parametrize("world_size", [2, 4])
def test_uneven_shares(world_size):
    """13 samples on 2 ranks are 7 and 6, on 4 ranks 4, 3, 3 and 3."""
    expected = _plain(13)
    for weights, _, _ in run_ranks(_train, world_size, 1, 13):
        assert distance(weights, expected[0]) < 1e-12


def _train_samples_mean():
    """Without weights every sample counts the same, although 7 + 6 samples lie on two ranks."""
    runtime = make_runtime()
    network = make_network()
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
    for batch in runtime.batches(make_data(), batch_size=13, num_steps=3):
        engine.backward(((engine(batch.x).squeeze(-1) - batch.y) ** 2).mean())
        engine.step()
    return weights_of(network)


def test_the_default_weight_is_the_number_of_samples():
    alone, split = run_ranks(_train_samples_mean, 1)[0], run_ranks(_train_samples_mean, 2)
    assert all(distance(weights, alone) < 1e-12 for weights in split)


def _empty_share(world_size):
    """All items lie in the first sample: the other ranks' means are over none, which PyTorch makes NaN."""
    runtime = make_runtime()
    network = make_network()
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
    data = {"x": make_data()["x"][:4], "y": make_data()["y"][:4], "num": torch.tensor([3, 0, 0, 0])}
    for batch in runtime.batches(data, batch_size=4, num_steps=2):
        some = batch.num > 0
        loss = nn.functional.mse_loss(engine(batch.x).squeeze(-1)[some], batch.y[some])
        assert bool(loss.isnan()) == (not some.any())
        engine.backward(loss, weight=batch.num.sum())
        result = engine.step()
        assert torch.isfinite(result.loss)
    return weights_of(network)


def test_a_share_without_items_takes_part_and_adds_nothing():
    alone, split = run_ranks(_empty_share, 1, 1)[0], run_ranks(_empty_share, 4, 4)
    assert all(distance(weights, alone) < 1e-12 for weights in split)


def _collectives():
    import torch.distributed as dist

    runtime = make_runtime()
    network = make_network()
    engine = runtime.setup(
        network, torch.optim.SGD(network.parameters(), lr=0.1), max_grad_norm=1.0, grad_accumulation_steps=3
    )
    real, calls = dist.all_reduce, []

    def counted(tensor, *args, **kwargs):
        calls.append(tensor.numel())
        return real(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        for batch in runtime.batches(make_data(), batch_size=12, num_steps=4):
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
    runtime = make_runtime()
    network = make_network()
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
    for batch in runtime.batches(make_data(), batch_size=12, num_steps=4):
        _, gradient = engine.input_gradient(batch.x)
        loss = ((gradient.norm(dim=1) - 1) ** 2).mean()
        if not penalty_alone:
            loss = 10 * loss + engine(batch.x).mean() + 0.1 * (engine(batch.x * 0.5) ** 2).mean()
        engine.backward(loss)
        engine.step()
    return weights_of(network)


@pytest.mark.parametrize("penalty_alone", [False, True])
@pytest.mark.parametrize("world_size", [2, 4])
def test_gradient_penalty_equals_one_process(penalty_alone, world_size):
    network, data = make_network().double(), make_data()
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
        assert distance(weights, weights_of(network)) < 1e-12


def _frozen():
    runtime = make_runtime()
    generator, critic = nn.Linear(3, 5).double(), make_network()
    critic.get_parameter("0.bias").requires_grad_(False)  # frozen by the user: must stay so
    G = runtime.setup(generator, torch.optim.SGD(generator.parameters(), lr=0.1))
    D = runtime.setup(critic, torch.optim.SGD([p for p in critic.parameters() if p.requires_grad], lr=0.1))
    before = weights_of(critic)
    for batch in runtime.batches(torch.zeros(8, 1), batch_size=4, num_steps=2):
        fake = G(runtime.randn(batch, 3, name="latent"))
        with D.frozen():
            G.backward(D(fake).mean())
        assert all(p.grad is None for p in critic.parameters())
        G.step()
    assert torch.equal(before, weights_of(critic))
    assert [p.requires_grad for p in critic.parameters()] == [True, False, True, True]
    return weights_of(generator)


def test_a_frozen_engine_gets_no_gradient_and_passes_it_on():
    alone = run_ranks(_frozen, 1)[0]
    assert not torch.equal(alone, weights_of(nn.Linear(3, 5).double()))
    assert all(distance(weights, alone) < 1e-12 for weights in run_ranks(_frozen, 2))


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
    runtime = make_runtime(precision=trainkit.Precision(name="fp16", initial_scale=8.0, growth_interval=3))
    networks = make_network(), make_network()
    G, D = (
        runtime.setup(n, torch.optim.SGD(n.parameters(), lr=0.1), schedule=trainkit.Schedule(total=10))
        for n in networks
    )
    data = {"x": make_data()["x"].float()}
    logged = []
    for step, batch in enumerate(runtime.batches(data, batch_size=12, num_steps=5)):
        before = weights_of(D.module)
        output = D(batch.x).float()
        if step == 2 and runtime.ranks.rank == 0:
            output = _Overflow.apply(output)
        D.backward(output.mean())
        result = D.step()
        G.backward(G(batch.x).float().mean())
        other = G.step()
        assert torch.equal(before, weights_of(D.module)) == result.skipped
        logged.append((result.skipped, D.scaler.scale, other.skipped, G.scaler.scale, round(result.lr, 6)))
    return logged, D.num_updates


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_overflow_on_one_rank_skips_that_engines_step_on_all(world_size):
    for logged, num_updates in run_ranks(_overflow, world_size):
        assert [skipped for skipped, *_ in logged] == [False, False, True, False, False]
        assert [scale for _, scale, *_ in logged] == [8, 8, 4, 4, 4]
        assert [skipped for _, _, skipped, *_ in logged] == [False] * 5
        assert [scale for _, _, _, scale, _ in logged] == [8, 8, 16, 16, 16]
        assert [lr for *_, lr in logged] == [0.1, 0.09, 0.08, 0.07, 0.06]  # advances on the skipped step too
        assert num_updates == 4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_follows_float32(precision):
    def train(name):
        runtime = make_runtime(precision=trainkit.Precision(name=name, initial_scale=1024.0))
        network = make_network()
        engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
        data = {"x": make_data()["x"].float(), "y": make_data()["y"].float()}
        for batch in runtime.batches(data, batch_size=12, num_steps=10):
            engine.backward(((engine(batch.x).float().squeeze(-1) - batch.y) ** 2).mean())
            engine.step()
        return weights_of(network)

    assert 0 < distance(train(precision), train("fp32")) < 0.02


def _dropout():
    runtime = make_runtime()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 64), trainkit.ops.Dropout(0.3), nn.Linear(64, 1), trainkit.ops.Dropout(0.1))
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1), grad_accumulation_steps=3)
    for batch in runtime.batches(make_data(), batch_size=12, num_steps=3):
        for micro in engine.micro_batches(batch):
            engine.backward((engine(micro.x) ** 2).mean())
        engine.step()
    return weights_of(network)


def test_dropout_masks_do_not_depend_on_the_split():
    alone = run_ranks(_dropout, 1)[0]
    for world_size in (2, 4):
        assert all(distance(weights, alone) < 1e-12 for weights in run_ranks(_dropout, world_size))


def test_dropout_drops_its_share_and_keeps_the_mean():
    layer = trainkit.ops.Dropout(0.25)
    layer.see(1, torch.arange(100))
    out = layer(torch.ones(100, 1000))
    assert abs((out == 0).double().mean() - 0.25) < 5 * (0.25 * 0.75 / 1e5) ** 0.5
    assert torch.allclose(out[out != 0], torch.tensor(1 / 0.75))
    assert torch.equal(layer(torch.ones(100, 1000)), out)
    with pytest.raises(UsageError, match="has the positions of 100 samples and an input of 3"):
        layer(torch.ones(3, 2))
