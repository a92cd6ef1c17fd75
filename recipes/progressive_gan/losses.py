"""Losses of the two networks: Wasserstein with gradient penalty, and logistic with R1."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainkit import Engine
from trainkit.errors import ConfigError, nearest, require_at_least

DRIFTS = {"wgan_gp": 0.001, "logistic": 0.0}


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What the networks minimize: the keys of `recipe.loss`.

    With scores s of D, D minimizes the mean over samples of

        wgan_gp: s(fake) - s(real) + penalty * (|gradient of s at lerp(real, fake, mix)| - 1)^2
        logistic: softplus(s(fake)) + softplus(-s(real)) + penalty / 2 * |gradient of s at real|^2

    and G of -s(fake), or softplus(-s(fake)): Gulrajani et al. 2017 (arXiv 1704.00028), and R1 of Mescheder et al. 2018
    (arXiv 1801.04406). Both add drift * s(real)^2 (Karras et al. 2018), which keeps the scores near zero.

    Args:
        name: `wgan_gp` or `logistic`.
        penalty: weight of the gradient penalty; 0: none.
        drift: weight of the drift term; None: 0.001 with `wgan_gp`, and 0 with `logistic`.
        penalty_every: steps from one penalty to the next, counted from the start of a phase. In those it has
            `penalty_every` times the weight, which leaves its mean as it is (lazy regularization, Karras et al. 2020).

    Raises:
        ConfigError: for an unknown name and for values out of range.
    """

    name: str = "wgan_gp"
    penalty: float = 10.0
    drift: float | None = None
    penalty_every: int = 1

    def __post_init__(self) -> None:
        if self.name not in DRIFTS:
            raise ConfigError(
                f"recipe.loss.name={self.name}: must be one of {', '.join(DRIFTS)}.{nearest(self.name, DRIFTS)}"
            )
        require_at_least(0, "recipe.loss.", penalty=self.penalty, drift=self.drift)
        require_at_least(1, "recipe.loss.", penalty_every=self.penalty_every)

    def penalty_weight(self, step: int) -> float:
        """Returns the weight of the gradient penalty in a step, counted from the start of a phase; 0: not computed."""
        return 0.0 if step % self.penalty_every else self.penalty * self.penalty_every

    def of_discriminator(
        self,
        D: Engine,
        real_BCHW: Tensor,
        fake_BCHW: Tensor,
        mix_B: Tensor,
        *,
        fade: float,
        penalty_weight: float,
        labels_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Computes D's loss, in float32 or wider. Collective under FSDP and ZeRO-3: every rank must call.

        Args:
            D: the engine of the discriminator.
            real_BCHW: training images.
            fake_BCHW: generated images.
            mix_B: uniform in [0, 1), one per sample.
            fade: weight of the new layers.
            penalty_weight: see there.
            labels_B: the classes, the same of the real and the generated image of a pair; None: there are none.

        Returns:
            The loss, and the penalty without its weight, detached; None where the weight is 0.
        """
        if not penalty_weight:
            return self._of_scores(D(real_BCHW, fade, labels_B), D(fake_BCHW, fade, labels_B)), None
        if self.name == "wgan_gp":
            penalty = gradient_penalty(D, real_BCHW, fake_BCHW, mix_B, fade, labels_B)
            scores_real = D(real_BCHW, fade, labels_B)
        else:
            scores_real, penalty = zero_centred_penalty(D, real_BCHW, fade, labels_B)
        loss = self._of_scores(scores_real, D(fake_BCHW, fade, labels_B))
        return loss + penalty_weight * penalty, penalty.detach()

    def of_generator(self, scores_fake: Tensor) -> Tensor:
        """Computes G's loss from D's scores [B] of generated images, in float32 or wider."""
        fake = _wide(scores_fake)
        return -fake.mean() if self.name == "wgan_gp" else F.softplus(-fake).mean()

    def _of_scores(self, scores_real: Tensor, scores_fake: Tensor) -> Tensor:
        real, fake = _wide(scores_real), _wide(scores_fake)
        drift = DRIFTS[self.name] if self.drift is None else self.drift
        if self.name == "wgan_gp":
            return fake.mean() - real.mean() + drift * real.square().mean()
        return F.softplus(fake).mean() + F.softplus(-real).mean() + drift * real.square().mean()


def gradient_penalty(
    D: Engine, real_BCHW: Tensor, fake_BCHW: Tensor, mix_B: Tensor, fade: float, labels_B: Tensor | None = None
) -> Tensor:
    """Computes mean((|gradient of D at lerp(real, fake, mix)| - 1)^2), in the precision of the parameters.

    Args:
        D: the engine of the discriminator.
        real_BCHW: training images.
        fake_BCHW: generated images.
        mix_B: uniform in [0, 1), one per sample.
        fade: weight of the new layers.
        labels_B: the classes, the same of the real and the generated image.

    Returns:
        A differentiable scalar, without loss scaling.
    """
    mixed_BCHW = real_BCHW.lerp(fake_BCHW.to(real_BCHW.dtype), mix_B.view(-1, 1, 1, 1))
    _, gradient_BCHW = D.input_gradient(mixed_BCHW, fade, labels_B)
    # Tensor.norm has the gradient 0 where the norm is 0; the root of a sum of squares has NaN.
    return (gradient_BCHW.flatten(1).norm(dim=1) - 1.0).square().mean()


def zero_centred_penalty(
    D: Engine, real_BCHW: Tensor, fade: float, labels_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Computes R1: mean(|gradient of D at real|^2) / 2, in the precision of the parameters.

    Args:
        D: the engine of the discriminator.
        real_BCHW: training images.
        fade: weight of the new layers.
        labels_B: the classes.

    Returns:
        The scores [B], and a differentiable scalar without loss scaling.
    """
    scores_B, gradient_BCHW = D.input_gradient(real_BCHW, fade, labels_B)
    return scores_B, gradient_BCHW.square().flatten(1).sum(dim=1).mean() / 2


def _wide(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
