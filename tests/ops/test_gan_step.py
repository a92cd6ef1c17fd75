"""A step of the progressive GAN with gradient penalty: fused ops against references, to the second order."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.ops.compared import every_op_fused
from trainkit.ops import mode
from trainkit_recipes.progressive_gan.losses import Loss
from trainkit_recipes.progressive_gan.networks import Discriminator, Generator, LowPrecision, Widths

WIDTHS = Widths(latent_dim=8, fmap_base=64, fmap_max=12, channels=3)
FADE = 0.3


class _Raw:
    """What a loss needs of an engine."""

    def __init__(self, module):
        self.module = module

    def __call__(self, x, *arguments):
        return self.module(x, *arguments)

    def input_gradient(self, x, *arguments):
        x = x.detach().requires_grad_()
        with torch.autocast("cpu", enabled=False):
            scores = self.module(x, *arguments)
            return scores, torch.autograd.grad(scores.sum(), x, create_graph=True)[0]


@contextmanager
def _reference():
    mode.use("reference")
    yield
    mode.use("fused")


def _step(resolution, is_fading, dtype=torch.float64, low=torch.bfloat16):
    """Name -> what a training step computes: images, scores, penalty, and all gradients of both networks."""
    torch.manual_seed(resolution)
    networks = [n(WIDTHS, resolution, is_fading, LowPrecision()).to(dtype) for n in (Generator, Discriminator)]
    G, D = networks
    for parameter in (p for n in networks for p in n.parameters() if p.dim() == 1):
        torch.nn.init.normal_(parameter, std=0.3)
    z, real, mix = (torch.randn(8, 8), torch.randn(8, 3, resolution, resolution), torch.rand(8))
    z, real, mix = (x.to(dtype) for x in (z, real, mix))
    with torch.autocast("cpu", low, enabled=dtype == torch.float32):
        fake = G(z, FADE)
        engine: Any = _Raw(D)
        losses = Loss()
        d_loss, penalty = losses.of_discriminator(engine, real, fake.detach(), mix, fade=FADE, penalty_weight=10.0)
        g_loss = losses.of_generator(D(fake, FADE))
    found = {"images": fake, "penalty": penalty, "d_loss": d_loss, "g_loss": g_loss}
    for loss, network in ((d_loss, D), (g_loss, G)):
        names, parameters = zip(*network.named_parameters(), strict=True)
        found |= dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True))
    return {name: x.detach() for name, x in found.items()}


@pytest.mark.parametrize(("resolution", "is_fading"), [(4, False), (8, False), (16, True)])
def test_a_step_equals_the_reference_in_float64(resolution, is_fading):
    with every_op_fused():
        fused = _step(resolution, is_fading)
    with _reference():
        expected = _step(resolution, is_fading)
    assert fused.keys() == expected.keys()
    assert any(not torch.equal(x, expected[name]) for name, x in fused.items())  # they are two computations
    for name, x in fused.items():
        scale = max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(x, expected[name], rtol=0.0, atol=1e-10 * scale, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_lower_precision_is_as_near_to_fp32_as_the_reference(low):
    def error(found):
        return {name: float((x.float() - exact[name]).norm() / exact[name].norm()) for name, x in found.items()}

    with _reference():
        exact = {name: x.float() for name, x in _step(16, True).items()}
        reference = error(_step(16, True, torch.float32, low))
    with every_op_fused():
        fused = error(_step(16, True, torch.float32, low))
    assert sum(fused.values()) < 1.2 * sum(reference.values())
