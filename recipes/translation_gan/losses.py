"""The losses of Zhu et al. 2017: least squares of scores (section 4), and L1 distances of images."""

import torch
from torch import Tensor


def least_squares(scores: Tensor, wanted: float) -> Tensor:
    """Computes mean((scores - wanted)^2), in float32 or wider.

    Args:
        scores: of patches, of any shape.
        wanted: 1 for real images, and for generated ones in a generator's turn; 0 for generated ones in a
            discriminator's.

    Returns:
        A scalar.
    """
    return (_wide(scores) - wanted).square().mean()


def l1(images: Tensor, others: Tensor) -> Tensor:
    """Computes mean(|images - others|), in float32 or wider."""
    return (_wide(images) - _wide(others)).abs().mean()


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
