"""The published configurations: their networks, phases, batches and learning rates, against the published tables."""

import pytest

from trainkit.config import compose
from trainkit_recipes.progressive_gan.growth import phase_at, plan
from trainkit_recipes.progressive_gan.micro_batches import MicroBatches
from trainkit_recipes.progressive_gan.networks import Discriminator, Generator, Widths

NAME = "celeba_hq_1024"
# By number of GPUs: images in a batch at 4, 8 ... 1024 pixels, and learning rates in 1e-3.
BATCHES = {
    8: (512, 256, 128, 64, 32, 32, 32, 32, 32),
    1: (128, 128, 128, 64, 32, 16, 8, 4, 4),
}
RATES = {8: (1, 1, 1, 1, 1, 1.5, 2, 3, 3), 1: (1, 1, 1, 1, 1, 1, 1, 1, 1.5)}
# Of 1024 pixels: 1000 images shown -> halvings of the resolution that are left, fractions while one fades.
HALVINGS_LEFT = {
    0: 8,
    590: 8,
    900: 7.5,
    1210: 7,
    1790: 7,
    2100: 6.5,
    4500: 4.5,
    6900: 2.5,
    9300: 0.5,
    9700: 0,
    10199: 0,
}


def _recipe(experiment):
    config = compose([f"experiment={experiment}"])
    return config, config["recipe"]


def _plan(recipe, batch_size):
    names = ("stable_images", "fade_images")
    return plan(recipe["resolution"], **{name: recipe[name] for name in names}, batch_size=batch_size)


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_celeba_hq_has_the_published_plan(gpus):
    suffix = {1: "_1gpu", 2: "_2gpus", 4: "_4gpus", 8: ""}[gpus]
    config, recipe = _recipe(NAME + suffix)
    phases = _plan(recipe, recipe["batch_size"])
    sizes = [4 << i for i in range(9)]
    batches = [next(phase.batch_size for phase in phases if phase.resolution == size) for size in sizes]
    rates = [1e3 * recipe["learning_rates"].get(size, config["optimizer"]["lr"]) for size in sizes]
    if gpus in BATCHES:
        assert tuple(batches) == BATCHES[gpus]
        assert rates == pytest.approx(RATES[gpus])
    else:  # not published: between the two that are
        assert all(BATCHES[1][i] <= batches[i] <= BATCHES[8][i] for i in range(9))
        assert all(RATES[1][i] <= round(rates[i], 6) <= RATES[8][i] for i in range(9))
    micro_batches = MicroBatches(1, phases, world_size=gpus, stddev_group=recipe["stddev_group"])  # each fits its ranks
    assert micro_batches.at(1024) == 1
    assert 10_200_000 <= phases[-1].end < 10_200_000 + 17 * 512


def test_the_schedule_is_the_published_one():
    phases = _plan(_recipe(NAME)[1], 1)
    for thousands, left in HALVINGS_LEFT.items():
        phase = phase_at(phases, thousands * 1000)
        halvings = 8 - [4 << i for i in range(9)].index(phase.resolution)
        assert halvings + 1 - phase.fade(thousands * 1000) == pytest.approx(left, abs=1e-9), thousands


def test_the_published_networks_have_the_published_widths():
    _, recipe = _recipe(NAME)
    names = ("latent_dim", "fmap_base", "fmap_max", "channels", "stddev_group")
    widths = Widths(**{name: recipe[name] for name in names})
    assert [widths.at(4 << i) for i in range(9)] == [512, 512, 512, 512, 256, 128, 64, 32, 16]
    for network in (Generator, Discriminator):
        num = sum(parameter.numel() for parameter in network(widths, 1024).parameters())
        assert num == pytest.approx(23.1e6, rel=0.002)

    _, recipe = _recipe("cifar10")
    widths = Widths(**{name: recipe[name] for name in names})
    assert widths.latent_dim == 128 and [widths.at(4 << i) for i in range(4)] == [128, 128, 128, 128]
    phases = _plan(recipe, recipe["batch_size"])
    assert [phase.resolution for phase in phases] == [4, 8, 8, 16, 16, 32, 32]
