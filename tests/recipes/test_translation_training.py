"""The translation GAN trained: against a plain loop, under every strategy and split, and after a kill."""

import copy
from functools import cache, partial

import pytest
import torch

import trainkit
from tests.recipes.translation import TINY, make_recipe, pictures, tensors_of
from tests.training.test_resume import assert_killed_equals_whole
from trainkit.errors import ConfigError, DataError
from trainkit.testing import run_ranks
from trainkit_recipes.translation_gan.networks import Shape
from trainkit_recipes.translation_gan.train import Losses

SGD = partial(torch.optim.SGD, lr=1e-4, momentum=0.1)


def _plain_step(nets, images, pools):
    """One step as the paper has it, both generators by one loss and one optimizer each; the losses."""
    first, second = images
    forth, back, judge_first, judge_second = nets
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05) for net in nets]
    made_second, made_first = forth(first), back(second)
    cycles = (back(made_second) - first).abs().mean() + (forth(made_first) - second).abs().mean()
    same = (back(first) - first).abs().mean() + (forth(second) - second).abs().mean()
    fooled = ((judge_second(made_second) - 1) ** 2).mean() + ((judge_first(made_first) - 1) ** 2).mean()
    (fooled + 10 * cycles + 5 * same).backward()
    for optimizer in optimizers[:2]:
        optimizer.step()
    losses = []
    for net, optimizer, real, fake, pool in (
        (judge_first, optimizers[2], first, made_first, pools[0]),
        (judge_second, optimizers[3], second, made_second, pools[1]),
    ):
        optimizer.zero_grad()
        shown = [image if old is None else old for image, old in zip(fake.detach(), pool, strict=True)]
        loss = ((net(real) - 1) ** 2).mean() / 2 + (net(torch.stack(shown)) ** 2).mean() / 2
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_step_is_that_of_a_plain_loop():
    recipe = make_recipe(optimizer=partial(torch.optim.SGD, lr=0.05))
    names = ("to_second", "to_first", "D_first", "D_second")
    plain = [copy.deepcopy(recipe.engines()[name].module) for name in names]
    batch = next(recipe.batches())
    images = [batch.data[side]["images"].double() / 127.5 - 1 for side in ("first", "second")]
    wanted = _plain_step(plain, images, [[None] * 8, [None] * 8])  # ten places: all eight are new
    found = recipe.train_step(batch)
    assert [float(found["d_loss_first"]), float(found["d_loss_second"])] == pytest.approx(wanted, rel=1e-12)
    for name, net in zip(names, plain, strict=True):
        for key, weight in net.named_parameters():
            assert torch.allclose(recipe.engines()[name].module.get_parameter(key), weight, rtol=0, atol=1e-13), key


def _train(grad_accumulation_steps=1, strategy="ddp", precision="fp64"):
    """(weights, averages and pools, gradients of the first step, what is measured); rank 0 holds everything."""
    of = trainkit.HSDP(shard_size=2) if strategy == "hsdp" else strategy
    recipe = make_recipe(grad_accumulation_steps, strategy=of, precision=precision, optimizer=SGD)
    batches = recipe.batches()
    recipe.train_step(next(batches))
    first = tensors_of(recipe, "optimizer")  # SGD's momentum is the gradient after one step
    for batch in batches:
        recipe.train_step(batch)
    return tensors_of(recipe, "module", "average"), first, recipe.evaluate()


def _furthest(tensors, alone):
    """max|a - b| / max|b|, of pools and of the rest."""
    found = []
    for is_pool in (True, False):
        names = [name for name in tensors if ("pool" in name) == is_pool]
        if names:
            largest = max(float(alone[name].abs().max()) for name in alone if ("pool" in name) == is_pool)
            found.append(max(float((tensors[name] - alone[name]).abs().max()) for name in names) / largest)
    return max(found)


def _compare(runs, alone, bounds):
    weights, gradients, measured = alone
    assert runs[0][0].keys() == weights.keys() and runs[0][1].keys() == gradients.keys()
    for held, first, found in runs:  # where a strategy shards weights, rank 0 has them all, and the others the pools
        assert found == pytest.approx(measured, rel=1e-9 if bounds[0] < 1e-6 else 1e-3)
        assert _furthest(held, weights) < bounds[0]
        assert all(
            float((held_k - gradients[k]).norm() / gradients[k].norm()) < bounds[1] for k, held_k in first.items()
        )


@pytest.fixture(scope="module")
def alone():
    """What one process makes, in so many micro-batches and a precision."""
    return cache(lambda num, precision: run_ranks(_train, 1, num, "single", precision)[0])


@pytest.mark.parametrize(("ranks", "grad_accumulation_steps"), [(1, 4), (2, 1), (4, 2)])
def test_weights_and_pools_do_not_depend_on_the_split(alone, ranks, grad_accumulation_steps):
    weights = alone(1, "fp64")[0]
    assert weights["D_first.module.pool.images"].abs().amax((1, 2, 3)).min() > 0, "it is full, and exchanges"
    _compare(run_ranks(_train, ranks, grad_accumulation_steps), alone(1, "fp64"), (1e-10, 1e-10))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "ranks"),
    [
        ("fsdp", 2),
        ("hsdp", 4),
        pytest.param("zero1", 2, marks=pytest.mark.nightly),
        ("zero2", 2),
        pytest.param("zero2", 4, marks=pytest.mark.nightly),
        ("zero3", 2),
    ],
)
def test_four_optimizers_under_every_strategy(alone, strategy, ranks):
    """To the bounds of benchmarks/parity.py; in fp32, all that DeepSpeed has, batches of other sizes round apart."""
    if strategy.startswith("zero"):
        precision, bounds, num_micro_batches = "fp32", (5e-6, 5e-5), 2 * ranks
    else:
        precision, bounds, num_micro_batches = "fp64", (1e-10, 1e-10), 1
    _compare(run_ranks(_train, ranks, 2, strategy, precision), alone(num_micro_batches, precision), bounds)


@pytest.mark.nightly  # by day test_experiments.py resumes it, with a pool that exchanges
def test_killed_and_resumed_gives_the_same_bits(tmp_path):
    arguments = [
        "experiment=outlines", "recipe.networks.resolution=8", "recipe.networks.generator_channels=2",
        "recipe.networks.discriminator_channels=2", "recipe.networks.num_blocks=1", "recipe.pool_size=20",
        "recipe.num_steps=120", "recipe.batch_size=4", "evaluate_every=null", "save_every=20", "log_every=1",
        "recipe.evaluation.num_images=16", "recipe.evaluation.num_directions=16",
    ]  # fmt: skip
    assert_killed_equals_whole(tmp_path, arguments, 2, kill_from_step=50)


def test_what_cannot_be_is_one_line_at_the_start():
    for settings, message in (
        ({"batch_size": 1, "grad_accumulation_steps": 2}, r"it must be 2 or more; set recipe\.batch_size=2"),
        ({"num_epochs": 1}, r"recipe\.num_steps=4, recipe\.num_epochs=1: give one of the two"),
        ({"pool_size": -1}, r"recipe\.pool_size=-1: must be 0 or more"),
        ({"ema_decay": 1.0}, r"recipe\.ema_decay=1\.0: must be 0 or more, and below 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_recipe(**settings)
    with pytest.raises(ConfigError, match=r"recipe\.losses\.cycle=-1: must be 0 or more"):
        Losses(cycle=-1)
    with pytest.raises(ConfigError, match=r"resolution=10: must be a multiple of 4, from 8 on"):
        Shape(resolution=10)
    with pytest.raises(
        ConfigError, match=r"discriminator_layers=3: must be at most 2 at recipe\.networks\.resolution=16, or null"
    ):
        Shape(resolution=16, discriminator_layers=3)
    with pytest.raises(DataError, match=r"do not fit the first images, of shape \[3, 16, 16\]"):
        make_recipe(networks=Shape(resolution=32))
    with pytest.raises(DataError, match=r"needs items with 'first' and 'second' images; these have \['images'\]"):
        from trainkit.data import Datasets

        recipe = make_recipe()
        type(recipe)(recipe.runtime, data=Datasets(pictures(4), []), optimizer=torch.optim.Adam, networks=TINY)


def test_the_rate_is_constant_and_then_falls_to_zero():
    schedule = trainkit.Schedule(shape="trapezoidal", decay=0.5, unit="run")
    recipe = make_recipe(num_steps=8, schedule=schedule, optimizer=partial(torch.optim.SGD, lr=1.0))
    rates = [recipe.train_step(batch)["lr"].value for batch in recipe.batches()]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_the_end_measures_no_evaluation_again(monkeypatch):
    recipe, tables = make_recipe(), []
    measure, calls = recipe.evaluator.measure, []

    def counted(generators):
        calls.append(1)
        return measure(generators)

    monkeypatch.setattr(recipe.evaluator, "measure", counted)
    monkeypatch.setattr(recipe.runtime.tracker, "table", lambda *given: tables.append(given))
    recipe.finish()
    assert len(calls) == 1, "nothing was evaluated before"
    recipe.evaluate()
    recipe.finish()
    assert len(calls) == 2 and tables[0] == tables[1]
    trainkit.Trainer(recipe).fit()
    assert len(calls) == 3 and tables[2] != tables[1], "of the trained networks"
