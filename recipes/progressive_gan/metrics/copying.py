"""Nearest training images of samples: does the generator copy?

The distance from a sample to its nearest training image says nothing alone. Held-out images are real ones that training
has not seen: where samples are nearer to training images than they are, the generator repeats what it saw (the test of
Meehan, Chaudhuri and Dasgupta 2020, over the whole set in place of cells).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9)
NUM_NEIGHBOURS = 3
"""Training images that are shown beside a sample."""
SIDE = 32
"""Pixels of a side at which images are compared; larger ones are averaged over boxes."""


def pixels(images_BCHW: Tensor) -> Tensor:
    """Makes vectors of images, so that their distance is the root mean square difference in grey levels of 0 .. 255.

    Args:
        images_BCHW: of -1 .. 1.

    Returns:
        [B, C*S*S], S at most SIDE.
    """
    size = images_BCHW.shape[-1]
    small = F.avg_pool2d(images_BCHW, size // SIDE) if size > SIDE else images_BCHW
    return small.flatten(1) * 127.5 / small[0].numel() ** 0.5 if len(small) else small.flatten(1)


@dataclass(frozen=True)
class Copying:
    """How far samples and held-out images are from their nearest training images.

    Args:
        samples: float64 [N], the distances of samples.
        held_out: float64 [M], those of held-out images.
    """

    samples: Tensor
    held_out: Tensor

    def values(self) -> dict[str, float]:
        """Returns the shares by name.

        `nearer_than_held_out`: of pairs of a sample and a held-out image, the share in which the sample is nearer to
        training images (a tie is half): 0.5 where they are alike. `copied`: the share of samples that are nearer than
        99 in 100 held-out images: about 0.01 where they are alike.
        """
        from scipy.stats import mannwhitneyu

        near = torch.quantile(self.held_out, 0.01, interpolation="lower")
        pairs = len(self.samples) * len(self.held_out)
        statistic = float(mannwhitneyu(self.held_out.numpy(), self.samples.numpy()).statistic)
        return {
            "nearer_than_held_out": statistic / pairs,
            "copied": float((self.samples < near).double().mean()),
        }

    def p_value(self) -> float:
        """Returns the probability of samples as near, were they drawn like held-out images: Mann-Whitney, one-sided."""
        from scipy.stats import mannwhitneyu

        return float(mannwhitneyu(self.samples.numpy(), self.held_out.numpy(), alternative="less").pvalue)

    def rows(self) -> list[tuple[str, float, float]]:
        """Returns (which, of samples, of held-out images): quantiles of the distances."""
        quantiles = torch.tensor(QUANTILES, dtype=torch.float64)
        found = (torch.quantile(self.samples, quantiles), torch.quantile(self.held_out, quantiles))
        names = ["nearest" if q == 0 else f"{q:.0%} are nearer than" for q in QUANTILES]
        return [(name, float(a), float(b)) for name, a, b in zip(names, *found, strict=True)]
