"""Oracles: the recipe's own networks, and a step of it counted operation by operation."""

import numpy as np
import pytest
import torch
from PIL import Image

from trainkit.benchmark.flops import count_flops
from trainkit.config import compose
from trainkit.errors import TopologyError
from trainkit.planning.workload import GAN_RESOLUTIONS, RECIPES, bert_flops, workload
from trainkit_recipes.progressive_gan.networks import Discriminator, Generator, Widths

OPERATIONS = 18


@pytest.mark.parametrize("resolution", GAN_RESOLUTIONS)
def test_the_gan_has_the_parameters_of_its_networks(resolution):
    with torch.device("meta"):
        networks = Generator(Widths(), resolution), Discriminator(Widths(), resolution)
    counted = sum(parameter.numel() for network in networks for parameter in network.parameters())
    assert workload(f"progressive_gan-{resolution}").num_parameters == counted


@pytest.mark.parametrize("resolution", GAN_RESOLUTIONS)
def test_the_gan_multiplies_as_often_as_its_networks(resolution):
    products = Widths().num_products(resolution)
    assert workload(f"progressive_gan-{resolution}").flops_per_sample == OPERATIONS * products


@pytest.mark.parametrize("resolution", [8, 16])
def test_operations_of_a_step_are_those_counted(resolution, tmp_path):
    """Counted on small networks, of which the 1x1 layers, which the formula leaves out, are a larger part."""
    random = np.random.default_rng(0)
    for number in range(24):
        picture = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    sizes = {"resolution": resolution, "fmap_base": 512, "fmap_max": 64, "latent_dim": 48, "batch_size": 8}
    given = [f"recipe.{key}={value}" for key, value in sizes.items()]
    given += [f"data.path={tmp_path}", f"run_dir={tmp_path / 'run'}", "ops=reference", "strategy=single", "device=cpu"]
    counted = count_flops(compose(["recipe=progressive_gan", "tracking=none", *given]))["flops_per_sample"]
    products = Widths(latent_dim=48, fmap_base=512, fmap_max=64).num_products(resolution)
    assert OPERATIONS * products == pytest.approx(counted, rel=0.01)


def test_the_gan_alone_is_the_largest():
    assert workload("progressive_gan") == RECIPES["progressive_gan-1024"]
    with pytest.raises(TopologyError, match=r"no recipe 'progressive_gan-1000'.*Did you mean 'progressive_gan-1024'"):
        workload("progressive_gan-1000")


def test_longer_sequences_cost_more_than_their_tokens():
    short, long = bert_flops("bert-large", tokens=128, masked=0), bert_flops("bert-large", tokens=384, masked=0)
    assert 3 < long / short < 3.5
    assert bert_flops("bert-large", tokens=128, masked=20) == RECIPES["bert-large"].flops_per_sample
