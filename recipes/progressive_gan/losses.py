"""The Wasserstein loss with gradient penalty (Gulrajani et al. 2017), as the progressive GAN uses it."""

import torch
from torch import Tensor

from trainkit import Engine


def gradient_penalty(D: Engine, real_BCHW: Tensor, fake_BCHW: Tensor, mix_B: Tensor, fade: float) -> Tensor:
    """mean((|gradient of D at lerp(real, fake, mix)| - 1)^2), a scalar that can be differentiated.

    mix_B: uniform in [0, 1), one a sample. In the parameters' own precision, on unscaled gradients.
    """
    mixed_BCHW = real_BCHW.lerp(fake_BCHW.to(real_BCHW.dtype), mix_B.view(-1, 1, 1, 1))
    _, gradient_BCHW = D.input_gradient(mixed_BCHW, fade)
    # Tensor.norm has the gradient 0 where the norm is 0; the root of a sum of squares has NaN.
    return (gradient_BCHW.flatten(1).norm(dim=1) - 1.0).square().mean()


def discriminator_loss(scores_real: Tensor, scores_fake: Tensor, drift: float) -> Tensor:
    """mean fake - mean real + drift * mean real^2: the last keeps the scores near zero."""
    real, fake = _wide(scores_real), _wide(scores_fake)
    return fake.mean() - real.mean() + drift * real.square().mean()


def generator_loss(scores_fake: Tensor) -> Tensor:
    return -_wide(scores_fake).mean()


def _wide(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
