"""The phases in which the progressive GAN grows, and what is refused before the first of them."""

import json

import pytest
import torch

from tests.recipes.gan import make_recipe
from trainkit import Runtime, Tracker
from trainkit.data import Datasets
from trainkit.errors import ConfigError, DataError
from trainkit_recipes.progressive_gan.evaluation import Evaluation
from trainkit_recipes.progressive_gan.growth import phase_at, plan
from trainkit_recipes.progressive_gan.train import ProgressiveGAN


def test_phases_follow_one_another_and_fade_from_zero():
    phases = plan(16, stable_images={4: 100, 16: 50}, fade_images=60, batch_size={4: 16, 16: 8})
    assert [(p.resolution, p.is_fading, p.num_images, p.batch_size) for p in phases] == [
        (4, False, 112, 16),
        (8, True, 64, 16),
        (8, False, 112, 16),
        (16, True, 64, 8),
        (16, False, 56, 8),
    ]
    assert [p.start for p in phases] == [0, 112, 176, 288, 352]
    assert phase_at(phases, 111).number == 0 and phase_at(phases, 112).number == 1
    assert phase_at(phases, 10**9).number == 4
    assert phases[1].fade(112) == 0.0 and phases[1].fade(144) == 0.5 and phases[2].fade(176) == 1.0
    with pytest.raises(ConfigError, match="must be one of 4, 8, 16"):
        plan(24, stable_images=1, fade_images=1, batch_size=1)
    with pytest.raises(ConfigError, match=r"recipe.batch_size=\{8: 4\}: has no value for 4x4"):
        plan(8, stable_images=1, fade_images=1, batch_size={8: 4})
    with pytest.raises(ConfigError, match=r"recipe\.batch_size=\{4: 4, 6: 8\}: 6 must be one of the resolutions 4, 8"):
        plan(8, stable_images=1, fade_images=1, batch_size={4: 4, 6: 8})


def test_a_length_in_epochs_keeps_the_proportions_of_the_phases():
    phases = plan(8, stable_images={4: 1000, 8: 2000}, fade_images=1000, batch_size={4: 16, 8: 8}, num_images=400)
    assert [(p.num_images, p.is_fading) for p in phases] == [(112, False), (104, True), (200, False)]
    recipe = make_recipe(num_epochs=3)
    assert recipe.num_samples == recipe.phases[-1].end
    wanted, num_phases = 3 * len(recipe.datasets.train), len(recipe.phases)
    assert wanted <= recipe.num_samples < wanted + 16 * num_phases
    known = json.loads(json.dumps(recipe.state_dict()))
    arguments = ProgressiveGAN.restored_arguments(known, None)
    restored = make_recipe(**{name: value for name, value in arguments.items() if name != "data"})
    assert restored.phases == recipe.phases, "whatever data a checkpoint is used with"
    assert recipe.length_key is None and make_recipe().length_key == "recipe.stable_images at 8x8"


def test_each_phase_resets_adam_and_keeps_averages():
    recipe = make_recipe(stable_images=32, fade_images=32)
    seen = []
    for batch in recipe.batches():
        recipe.train_step(batch)
        (state,) = {int(entry["step"]) for entry in recipe.G.optimizer.state.values()}
        seen.append((str(recipe.phase).split(" for")[0], state, recipe.G.num_updates))
    assert seen == [
        ("4x4 training", 1, 1),
        ("4x4 training", 2, 2),
        ("8x8 fading in", 1, 3),
        ("8x8 fading in", 2, 4),
        ("8x8 training", 1, 5),
        ("8x8 training", 2, 6),
    ]
    average, weights = recipe.G.state_dict()["average"], recipe.G.state_dict()["module"]
    assert average.keys() == weights.keys()
    assert not torch.equal(average["blocks.4.conv.weight"], weights["blocks.4.conv.weight"])


def test_a_phase_cannot_be_jumped_over():
    recipe = make_recipe(stable_images=32, fade_images=32)
    with pytest.raises(ConfigError, match=r"4x4 training.* put position 64 at 8x8 training"):
        next(recipe.batches(start=64))


def test_shares_that_split_groups_are_refused_at_the_start():
    with pytest.raises(ConfigError, match=r"batch_size=12 at 4x4.*multiple of 8"):
        make_recipe(grad_accumulation_steps=2, batch_size=12)
    with pytest.raises(DataError, match=r"do not fit images of shape \[3, 8, 8\]"):
        make_recipe(resolution=16)
    with pytest.raises(ConfigError, match=r"recipe\.learning_rates=\{100: 0\.1\}: 100 must be one of the resolutions"):
        make_recipe(learning_rates={100: 0.1})
    with pytest.raises(ConfigError, match=r"recipe\.evaluation\.num_shown=0: must be 1 or more"):
        make_recipe(evaluation=Evaluation(num_shown=0))


def test_items_without_images_are_named():
    runtime = Runtime(tracker=Tracker(), device="cpu")
    data = Datasets(train=[{"pixels": torch.zeros(3, 8, 8)}], held_out=[])
    with pytest.raises(DataError, match=r"these have \['pixels'\]"):
        ProgressiveGAN(runtime, data=data, optimizer=torch.optim.Adam, resolution=8)


def test_images_that_none_is_held_out_of_are_refused():
    data = Datasets(train=[{"images": torch.zeros(3, 8, 8)}], held_out=[])
    with pytest.raises(DataError, match=r"none of 1 images is held out, .* set a larger data\.held_out"):
        ProgressiveGAN(Runtime(tracker=Tracker(), device="cpu"), data=data, optimizer=torch.optim.Adam, resolution=8)
