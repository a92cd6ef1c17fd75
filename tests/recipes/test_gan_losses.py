"""Losses of the GAN against float64 numpy, for a discriminator whose input gradient is known."""

import numpy as np
import pytest
import torch

from tests.recipes.gan import make_recipe
from trainkit import Runtime, Tracker
from trainkit.errors import ConfigError
from trainkit_recipes.progressive_gan.losses import Loss

PENALTY, DRIFT = 3.0, 0.2


class _Quadratic(torch.nn.Module):
    """D(x) = x A x / 2 + b x, whose gradient is (A + A^T) x / 2 + b."""

    def __init__(self):
        super().__init__()
        self.A, self.b = torch.nn.Parameter(torch.randn(12, 12)), torch.nn.Parameter(torch.randn(12))

    def forward(self, x, fade, labels=None):
        x = x.flatten(1)
        return fade * ((x @ self.A * x).sum(1) / 2 + x @ self.b)


def _expected(name, A, b, real, fake, mix, fade, weight):
    """The loss by definition, as a function of A and b."""
    scores = [fade * (np.einsum("bi,ij,bj->b", x, A, x) / 2 + x @ b) for x in (real, fake)]
    at = real if name == "logistic" else real + mix[:, None] * (fake - real)
    norms = np.linalg.norm(fade * (at @ (A + A.T) / 2 + b), axis=1)
    drift = DRIFT * np.mean(scores[0] ** 2)
    if name == "logistic":
        return np.mean(np.log1p(np.exp(scores[1])) + np.log1p(np.exp(-scores[0])) + weight / 2 * norms**2) + drift
    return np.mean(scores[1] - scores[0] + weight * (norms - 1) ** 2) + drift


@pytest.mark.parametrize("weight", [0.0, PENALTY])
@pytest.mark.parametrize("name", ["wgan_gp", "logistic"])
def test_value_and_gradient_are_those_of_the_definition(name, weight):
    torch.manual_seed(1)
    runtime = Runtime(precision="fp64", tracker=Tracker(), device="cpu")
    D = runtime.setup(_Quadratic(), lambda groups: torch.optim.SGD(groups, lr=1.0))
    real, fake, mix = (torch.randn(6, 3, 2, 2).double(), torch.randn(6, 3, 2, 2).double(), torch.rand(6).double())
    A, b = (p.detach().clone().numpy() for p in D.module.parameters())
    loss, penalty = Loss(name=name, drift=DRIFT).of_discriminator(D, real, fake, mix, fade=0.4, penalty_weight=weight)

    def expected(A, b):
        return _expected(name, A, b, real.flatten(1).numpy(), fake.flatten(1).numpy(), mix.numpy(), 0.4, weight)

    assert float(loss.detach()) == pytest.approx(expected(A, b), rel=1e-12)
    assert (penalty is None) == (weight == 0.0)
    direction = np.random.default_rng(0).standard_normal((13, 12))
    h = 1e-5
    ahead, behind = (expected(A + s * direction[:12], b + s * direction[12]) for s in (h, -h))
    slope = (ahead - behind) / (2 * h)
    D.backward(loss, weight=1.0)
    gradients = np.vstack([np.asarray(p.grad) for p in D.module.parameters()])
    assert float((gradients * direction).sum()) == pytest.approx(slope, rel=1e-8)


def test_the_generator_raises_the_scores_of_its_images():
    scores = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    assert float(Loss().of_generator(scores)) == pytest.approx(-0.5)
    assert float(Loss(name="logistic").of_generator(scores)) == pytest.approx(
        np.mean(np.log1p(np.exp(-scores.numpy())))
    )


def test_a_lazy_penalty_has_the_same_weight_on_average():
    loss = Loss(penalty=7.0, penalty_every=4)
    weights = [loss.penalty_weight(step) for step in range(8)]
    assert weights == [28.0, 0, 0, 0, 28.0, 0, 0, 0]
    assert Loss(penalty=0.0).penalty_weight(0) == 0.0


def test_a_step_is_penalized_by_its_position_in_the_phase():
    """The phases begin at 0 and 32, with 16 images a step."""
    recipe = make_recipe(loss=Loss(penalty_every=3))
    rows = [recipe.train_step(batch) for _, batch in zip(range(7), recipe.batches(), strict=False)]
    assert ["penalty" in row for row in rows] == [True, False, True, False, False, True, False]


def test_an_unknown_name_suggests_one():
    with pytest.raises(ConfigError, match=r"recipe.loss.name=logstic: must be one of wgan_gp, logistic.*logistic"):
        Loss(name="logstic")
