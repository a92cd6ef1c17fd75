"""The progressive GAN's networks: published sizes, exact fades, and statistics of groups by global index."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.recipes.gan import SMALL
from trainkit.ops import mode
from trainkit.ops.concat import append_minibatch_stddev
from trainkit.ops.pixel_norm import pixel_norm
from trainkit.ops.resample import downsample, upsample
from trainkit_recipes.progressive_gan.networks import Discriminator, EqualizedConv2d, Generator, Widths


def test_the_networks_have_the_published_sizes():
    """Table 2 of the paper: 23.1 million parameters each at 1024x1024."""
    for network in (Generator, Discriminator):
        num = sum(p.numel() for p in network(Widths(), 1024).parameters())
        assert round(num / 1e6, 1) == 23.1


def test_channels_of_the_paper():
    expected = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}
    assert {size: Widths().at(size) for size in expected} == expected


@pytest.mark.parametrize("widths", [Widths(), Widths(latent_dim=64, fmap_base=256, fmap_max=64, channels=1)])
def test_the_counted_cost_is_that_of_torch(widths, monkeypatch):
    monkeypatch.setattr(mode, "_fused", False)  # Winograd's algorithm has a fourth of the products
    for size in (4, 8, 32):
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            Discriminator(widths, size)(Generator(widths, size)(torch.zeros(4, widths.latent_dim)))
        assert widths.num_products(size) == pytest.approx(counted.get_total_flops() / 4 / 2, rel=0.05), size


def _kept(new, old):
    """`old` with the weights of `new` that it has."""
    old.load_state_dict({k: v for k, v in new.state_dict().items() if k in old.state_dict()})
    return old


@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_a_fade_goes_from_the_old_networks_to_the_new(resolution):
    torch.manual_seed(0)
    G, D = (network(SMALL, resolution, True).double() for network in (Generator, Discriminator))
    z, x = torch.randn(4, 8).double(), torch.randn(4, 3, resolution, resolution).double()
    old_G, old_D = (_kept(n, type(n)(SMALL, resolution // 2).double()) for n in (G, D))
    new_G, new_D = (_kept(n, type(n)(SMALL, resolution).double()) for n in (G, D))
    assert torch.equal(G(z, 0.0), upsample(old_G(z)))
    assert torch.equal(D(x, 0.0), old_D(downsample(x)))
    assert torch.equal(G(z, 1.0), new_G(z))
    assert torch.equal(D(x, 1.0), new_D(x))
    assert not torch.allclose(G(z, 0.5), G(z, 1.0))


@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_parameters_keep_their_names_while_a_network_grows(network):
    names = [set(network(SMALL, size, fading).state_dict()) for size, fading in ((8, False), (16, True), (16, False))]
    blocks = [{name for name in each if name.startswith("blocks")} for each in names]
    assert blocks[0] < blocks[1] == blocks[2]
    assert names[1] - names[2] == {name for name in names[0] if "image.8" in name}


def test_minibatch_stddev_against_a_plain_loop():
    x = torch.randn(12, 3, 4, 4, dtype=torch.float64)
    for group in (1, 2, 4):
        out = append_minibatch_stddev(x, group)
        num_groups = 12 // group
        for i in range(12):
            members = x[[j for j in range(12) if j % num_groups == i % num_groups]].numpy()
            expected = np.sqrt(((members - members.mean(axis=0)) ** 2).mean(axis=0) + 1e-8).mean()
            assert np.allclose(out[i, 3].numpy(), expected, rtol=1e-12)
        assert torch.equal(out[:, :3], x)


@pytest.mark.parametrize(("world_size", "grad_accumulation_steps"), [(2, 1), (4, 1), (2, 2)])
def test_groups_of_strided_shares_are_those_of_the_whole_batch(world_size, grad_accumulation_steps):
    x = torch.randn(32, 2, 4, 4, dtype=torch.float64)
    whole = append_minibatch_stddev(x, 4)
    for rank in range(world_size):
        for micro in range(grad_accumulation_steps):
            mine = slice(rank + world_size * micro, None, world_size * grad_accumulation_steps)
            assert torch.equal(append_minibatch_stddev(x[mine], 4), whole[mine])


def test_equalized_layers_and_pixel_norm():
    torch.manual_seed(0)
    layer = EqualizedConv2d(64, 256, 3)
    out = layer(torch.randn(4, 64, 16, 16))[:, :, 2:-2, 2:-2]
    assert abs(out.var().item() - 2.0) < 0.1  # gain sqrt(2), whatever the fan-in
    assert layer.weight.std().item() == pytest.approx(1.0, abs=0.02)
    normed = pixel_norm(torch.randn(3, 50, 2, 2, dtype=torch.float64) * 7)
    assert torch.allclose(normed.square().mean(dim=1), torch.ones(3, 2, 2, dtype=torch.float64))
