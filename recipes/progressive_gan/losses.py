"""The Wasserstein loss with gradient penalty (Gulrajani et al. 2017), as used by the progressive GAN."""

import torch
from torch import Tensor

from trainkit import Engine


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


def discriminator_loss(scores_real: Tensor, scores_fake: Tensor, drift: float) -> Tensor:
    """Computes mean(fake) - mean(real) + drift * mean(real^2); the last term keeps the scores near zero.

    Args:
        scores_real: [B], of training images.
        scores_fake: [B], of generated images.
        drift: weight of the last term.

    Returns:
        A scalar, in float32 or wider.
    """
    real, fake = _wide(scores_real), _wide(scores_fake)
    return fake.mean() - real.mean() + drift * real.square().mean()


def generator_loss(scores_fake: Tensor) -> Tensor:
    """Computes -mean(fake), in float32 or wider."""
    return -_wide(scores_fake).mean()


def _wide(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
