"""Micro-batches by resolution: found for all of them before the first step, and more at one that outgrows memory."""

from functools import partial
from unittest import mock

import pytest
import torch

from tests.recipes.gan import make_recipe
from tests.strategy import scenes
from trainkit import Runtime, Tracker, Trainer
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks
from trainkit.training import accumulation
from trainkit_recipes.progressive_gan import augment
from trainkit_recipes.progressive_gan.augment import Augmentation
from trainkit_recipes.progressive_gan.growth import plan
from trainkit_recipes.progressive_gan.losses import Loss
from trainkit_recipes.progressive_gan.micro_batches import MicroBatches

SHORT = {"stable_images": 64, "fade_images": 96}


class _Said(Tracker):
    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


def _greedy(limit, network):
    """Runtime.setup whose networks run out of memory at 8x8 on the last rank, above `limit` samples at once."""
    setup = Runtime.setup

    def planted(self, module, optimizer, *, name, **kwargs):
        def refuse(layer, given):
            if self.ranks.rank == self.ranks.world_size - 1 and len(given[0]) > limit and torch.is_grad_enabled():
                raise torch.OutOfMemoryError("planted")

        if name == network and "8" in module.blocks:
            module.blocks["8"].register_forward_pre_hook(refuse)
        return setup(self, module, optimizer, name=name, **kwargs)

    return mock.patch.object(Runtime, "setup", planted)


def _fit(strategy, grad_accumulation_steps, limit, network="D", **settings):
    """Both networks and the average after the whole run; what was said; the micro-batches."""
    said = _Said()
    runtime = scenes.make_runtime(strategy, tracker=said, seed=5)
    with _greedy(limit, network), mock.patch.object(augment, "STEPS_BETWEEN", 1):  # also in the step made again
        recipe = make_recipe(grad_accumulation_steps, batch_size=32, runtime=runtime, **SHORT, **settings)
        with mock.patch.multiple(recipe, evaluate=dict, baselines=dict, finish=mock.DEFAULT):
            Trainer(recipe).fit()
    states = [scenes.whole_state(engine) for engine in recipe.engines().values()]
    tensors = [scenes.flat(state[part]) for state in states for part in ("module", "average") if state[part]]
    told = [line for line in said.lines if "does not fit" in line]
    return torch.cat(tensors), told, recipe.micro_batches.steps, recipe.state_dict()


@pytest.mark.parametrize(
    ("strategy", "network"),
    [
        ("ddp", "D"),
        ("ddp", "G"),
        ("fsdp", "G"),  # stands for HSDP, and ZeRO-2 for ZeRO-1
        pytest.param("hsdp", "D", marks=pytest.mark.nightly),
        pytest.param("zero1", "D", marks=pytest.mark.nightly),
        ("zero2", "G"),
    ],
)
def test_a_resolution_that_outgrows_memory_is_split_further(strategy, network):
    expected = run_ranks(_fit, 2, strategy, {8: 4}, 64, network)
    found = run_ranks(_fit, 2, strategy, 1, 5, network)
    for (weights, _, steps, state), (without, nothing, *_) in zip(found, expected, strict=True):
        assert steps == {4: 1, 8: 4} and torch.equal(weights, without) and nothing == []
        assert state["micro_batches"] == {"world_size": 2, "steps": {8: 4}}
    assert found[0][1] == [
        f"8x8 does not fit into memory in {now} micro-batches: the step is made again in {more}, with the same global "
        f"batch of 32"
        for now, more in ((1, 2), (2, 4))
    ]


def test_a_step_made_again_adapts_augmentation_once():
    ada = {"augment": Augmentation(kind="ada", probability=0.3, speed_images=6400), "loss": Loss(penalty_every=4)}
    expected = run_ranks(partial(_fit, **ada), 2, "ddp", {8: 4}, 64)
    found = run_ranks(partial(_fit, **ada), 2, "ddp", 1, 5)
    for (weights, _, steps, state), (without, _, _, its_state) in zip(found, expected, strict=True):
        assert steps == {4: 1, 8: 4} and torch.equal(weights, without)
        assert state["augment"] == its_state["augment"] and state["augment"]["probability"] not in (0.0, 0.3, 0.8)


def _search(limit):
    said = _Said()
    runtime = scenes.make_runtime("ddp", tracker=said, seed=5)

    def make(runtime, grad_accumulation_steps):
        return make_recipe(grad_accumulation_steps, batch_size=32, runtime=runtime, **SHORT)

    with _greedy(limit, "D"):
        try:
            found = accumulation.find(runtime, make, "never")
        except ConfigError as error:
            return str(error)
        recipe = make(runtime, found["grad_accumulation_steps"])
    batches = [stage.grad_accumulation_steps for stage in recipe.stages().values()]
    return found["grad_accumulation_steps"], batches, said.lines


def test_every_resolution_is_tried_before_the_first_step():
    results = run_ranks(_search, 2, 8)
    assert [(found, batches) for found, batches, _ in results] == [({4: 1, 8: 2}, [1, 2])] * 2
    of_rank_0, of_rank_1 = ([line for line in said if "stored as" not in line] for *_, said in results)
    assert of_rank_1 == []
    assert of_rank_0 == [
        "grad_accumulation_steps=auto: 1 micro-batches a rank fit into memory at 4x4",
        "grad_accumulation_steps=auto: 1 micro-batches a rank do not fit into memory at 8x8",
        "grad_accumulation_steps=auto: 2 micro-batches a rank fit into memory at 8x8",
    ]
    for text in run_ranks(_search, 2, 2):
        assert "does not fit into memory in 16 micro-batches at 8x8" in text


def test_micro_batches_by_resolution():
    phases = plan(16, stable_images=64, fade_images=64, batch_size={4: 64, 16: 24})
    chosen = MicroBatches({8: 2}, phases, world_size=1, stddev_group=4)
    assert chosen.steps == {4: 1, 8: 2, 16: 2}
    chosen.split(16)
    assert chosen.at(16) == 3
    again = MicroBatches(1, phases, world_size=1, stddev_group=4)
    again.load_state_dict(chosen.state_dict())
    assert again.steps == {4: 1, 8: 1, 16: 3}
    on_two = MicroBatches(1, phases, world_size=2, stddev_group=4)
    on_two.load_state_dict(chosen.state_dict())
    assert on_two.steps == {4: 1, 8: 1, 16: 3}, "4 samples at once; of 24 none fit between them and 12"
    chosen.split(16)
    with pytest.raises(ConfigError, match=r"16x16 does not fit into memory: recipe.batch_size=24 .* precision=bf16"):
        chosen.split(16)
    with pytest.raises(ConfigError, match=r"batch_size=24 at 16x16: with 2 ranks and grad_accumulation_steps=4"):
        MicroBatches({8: 4}, phases, world_size=2, stddev_group=4)
    with pytest.raises(ConfigError, match="12 must be one of the resolutions"):
        MicroBatches({12: 4}, phases, world_size=1, stddev_group=4)
    with pytest.raises(ConfigError, match=r"grad_accumulation_steps=0"):
        MicroBatches(0, phases, world_size=1, stddev_group=4)
