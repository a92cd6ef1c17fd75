"""Evaluation under every strategy: ragged last batches, ranks without samples, exact counts, and training goes on."""

import pytest
import torch
from torch import nn

from tests.strategy import scenes
from trainkit.testing import run_ranks
from trainkit_recipes.bert.model import Architecture, Layer, MaskedLanguageModel
from trainkit_recipes.progressive_gan.networks import Generator, Widths

NUM_HELD_OUT = 33  # in batches of 16: the last has one sample, so that three ranks of four have none


def _evaluate(engine, forward, runtime):
    held_out = {key: tensor[:NUM_HELD_OUT] for key, tensor in scenes.data(runtime.dtype).items()}
    sums = {"squared": 0.0, "count": 0.0}
    sizes = []
    with torch.no_grad():
        for batch in runtime.evaluation_batches(held_out, batch_size=16):
            output = forward(batch.x).squeeze(-1)
            sums["squared"] += ((output - batch.y) ** 2).sum()
            sums["count"] += len(batch)
            sizes.append(len(batch))
    totals = runtime.ranks.all_reduce_sum(sums)
    return totals["squared"] / totals["count"], totals["count"], sizes


def _train_and_evaluate(strategy, per_block):
    """Evaluates before the first step, between a backward and its step, after steps, and with averaged weights."""
    runtime = scenes.make_runtime(strategy)
    engine = runtime.setup(
        scenes.network(),
        lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
        blocks=(nn.Linear,) if per_block else (),
        ema_decay=0.5,
    )
    found = [_evaluate(engine, engine, runtime)]
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=16, num_steps=3):
        engine.backward(((engine(batch.x).squeeze(-1) - batch.y) ** 2).mean())
        if batch.position == 16:
            found.append(_evaluate(engine, engine, runtime))
        engine.step()
        with engine.averaged() as module:
            found.append(_evaluate(engine, module, runtime))
    found.append(_evaluate(engine, engine, runtime))
    losses = torch.tensor([loss for loss, _, _ in found], dtype=torch.float64)
    return losses, {count for _, count, _ in found}, found[0][2]


@pytest.mark.parametrize("per_block", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("strategy", scenes.EVERY)
def test_losses_and_counts_are_those_of_one_process(strategy, world_size, per_block):
    if per_block and strategy not in ("fsdp", "hsdp"):
        per_block = False
    expected, _, _ = run_ranks(_train_and_evaluate, 1, "ddp", False)[0]
    assert len(set(expected.tolist())) == len(expected), "the evaluations tell different weights apart"
    results = run_ranks(_train_and_evaluate, world_size, strategy, per_block)
    for losses, counts, _ in results:
        assert counts == {NUM_HELD_OUT}
        assert scenes.error(losses, expected) < scenes.tolerance(strategy)
    if world_size == 4:
        assert [sizes for _, _, sizes in results] == [[4, 4, 1], [4, 4, 0], [4, 4, 0], [4, 4, 0]]


def _empty_share(strategy):
    runtime = scenes.make_runtime(strategy, precision="fp32")
    bert = MaskedLanguageModel(
        Architecture(hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=32, max_length=8, dropout=0.0), 64
    )
    bert.eval()  # dropout is for training
    language = runtime.setup(bert, lambda groups: torch.optim.SGD(groups, lr=0.1), blocks=(Layer,))
    widths = Widths(latent_dim=4, fmap_base=32, fmap_max=8)
    generator = runtime.setup(Generator(widths, 8, is_fading=True), lambda groups: torch.optim.SGD(groups, lr=0.1))
    shapes = []
    with torch.no_grad():
        for batch in runtime.evaluation_batches(torch.zeros(1, 8, dtype=torch.int64), batch_size=16):
            shapes.append(tuple(language(batch.data, attended_BT=batch.data == 0).shape))
            shapes.append(tuple(generator(torch.zeros(len(batch), 4), 0.5).shape))
    return shapes


@pytest.mark.parametrize("strategy", scenes.EVERY)
def test_both_recipes_networks_take_a_share_without_samples(strategy):
    first, second = run_ranks(_empty_share, 2, strategy)
    assert first == [(1, 8, 64), (1, 3, 8, 8)]
    assert second == [(0, 8, 64), (0, 3, 8, 8)]
