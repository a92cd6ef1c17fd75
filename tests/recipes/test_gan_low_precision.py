"""The highest resolutions of the progressive GAN in fp16 and bf16, with activations clamped."""

import numpy as np
import pytest
import torch

from tests.present import present
from tests.recipes.gan import SMALL, make_recipe
from trainkit.errors import ConfigError
from trainkit.ops.pixel_norm import pixel_norm
from trainkit_recipes.progressive_gan.networks import Discriminator, Generator, LowPrecision


@pytest.mark.parametrize(
    ("num", "final", "low"),
    [
        (4, 1024, {1024, 512, 256, 128}),
        (4, 32, {32, 16, 8}),  # 4x4 never
        (2, 32, {32, 16}),
        (0, 32, set()),
        (9, 8, {8}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_highest_resolutions_compute_in_low_precision(num, final, low, dtype):
    rule = LowPrecision.highest(num, final, 256.0)
    found: dict[int, set[torch.dtype]] = {}
    resolution = min(final, 32)  # a network that has not grown to 1024 yet has none of those
    for network, given in ((Generator, (4, 8)), (Discriminator, (4, 3, resolution, resolution))):
        module = network(SMALL, resolution, True, rule)
        for name, layer in module.named_modules():
            if name.startswith(("blocks.", "from_image.", "to_image.")) and not [*layer.children()]:
                size = int(name.split(".")[1])
                layer.register_forward_hook(lambda layer, given, out, size=size: found[size].add(out.dtype))
                found.setdefault(size, set())
        with torch.autocast("cpu", dtype):
            assert module(torch.randn(given), 0.5).dtype == torch.float32
    assert found == {size: {dtype if size in low else torch.float32} for size in found}
    assert found.keys() >= {4, 8, resolution}


def _weights_after(precision, **settings):
    """Of both networks, after four steps in the fade to 8x8."""
    recipe = make_recipe(precision=precision, **settings)
    for step, batch in enumerate(recipe.batches()):
        recipe.train_step(batch)
        if step == 5:
            break
    assert recipe.phase.is_fading
    return torch.cat([p.detach().flatten() for engine in (recipe.G, recipe.D) for p in engine.module.parameters()])


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_without_low_precision_its_settings_change_no_bit(precision):
    usual = _weights_after(precision)
    assert torch.equal(usual, _weights_after(precision, low_precision_resolutions=0, clamp=1e-3))
    assert torch.equal(usual, _weights_after(precision, low_precision_resolutions=9, clamp=1e-3))


def test_with_no_resolution_left_bf16_computes_as_fp32_does():
    exact = _weights_after("fp32")
    assert torch.equal(exact, _weights_after("bf16", low_precision_resolutions=0))
    low = _weights_after("bf16", low_precision_resolutions=1)
    assert 0 < float((low - exact).abs().max()) < 0.1
    assert not torch.equal(low, _weights_after("bf16", low_precision_resolutions=1, clamp=0.01))


def _scores(clamp, gain):
    """Of a discriminator and a generator whose convolutions at 8x8 have weights `gain` times the usual, in fp16."""
    torch.manual_seed(0)
    low = LowPrecision(clamp=clamp)
    G, D = Generator(SMALL, 8, low=low), Discriminator(SMALL, 8, low=low)
    largest = []
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        for module in (G, D):
            module.get_parameter("blocks.8.conv1.weight").mul_(gain)
        D.get_submodule("blocks.8.conv2").register_forward_pre_hook(
            lambda layer, given: largest.append(float(given[0].abs().max()))
        )
        image = G(torch.randn(8, 8))
        scores = D(torch.randn(8, 3, 8, 8))
    return image, scores, largest[0]


def test_large_activations_saturate_in_fp16_and_stay_numbers():
    image, scores, largest = _scores(256.0, 1e5)
    assert torch.isfinite(image).all() and torch.isfinite(scores).all() and largest == 256.0
    assert image.abs().max() > 0.01
    _, unclamped, largest = _scores(float("inf"), 1e5)
    assert largest == float("inf") and not torch.isfinite(unclamped).all()
    for ours, free in zip(_scores(256.0, 1.0), _scores(float("inf"), 1.0), strict=True):
        assert ours == free if isinstance(ours, float) else torch.equal(ours, free)  # the usual ones are not touched


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pixel_norm_of_what_was_clamped(dtype):
    """Squares of activations near the clamp are no fp16 numbers; value and gradient against float64."""
    x = torch.tensor([1e-3, 1.0, 200.0, 256.0], dtype=dtype).view(1, 4, 1, 1) * torch.tensor([1.0, -1.0]).view(
        2, 1, 1, 1
    )
    x = x.to(dtype).requires_grad_(True)
    exact = x.detach().double().requires_grad_(True)
    weight = torch.tensor([1.0, 2.0, 3.0, -1.0]).view(1, 4, 1, 1)
    outputs = pixel_norm(x), pixel_norm(exact)
    for out in outputs:
        (out.double() * weight).sum().backward()
    assert outputs[0].dtype == dtype
    rounding = 4 * torch.finfo(dtype).eps
    assert torch.allclose(outputs[0].double(), outputs[1], rtol=rounding)
    found, expected = present(x.grad), present(exact.grad)
    assert torch.allclose(found.double(), expected, rtol=rounding, atol=rounding * float(expected.abs().max()))


def test_settings_of_low_precision_that_cannot_be():
    for settings in ({"low_precision_resolutions": -1}, {"clamp": 0.0}):
        with pytest.raises(ConfigError, match=r"they must be 0 or more resolutions, and a clamp above 0"):
            make_recipe(**settings)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains(precision):
    recipe = make_recipe(precision=precision)
    for step, batch in enumerate(recipe.batches()):
        metrics = recipe.train_step(batch)
        if step == 3:
            break
    assert np.isfinite(float(metrics["d_loss"])) and np.isfinite(float(metrics["penalty"]))
