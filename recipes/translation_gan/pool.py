"""Pool: generated images of earlier steps, which a discriminator is also trained on (Shrivastava et al. 2017).

An image of the pool is a matter of the whole global batch, not of a rank: every rank holds the same pool and the same
draws, and takes its share of what comes out. So what a discriminator sees depends on neither ranks nor micro-batches,
and a checkpoint, which holds the pool as a buffer of the discriminator, continues with the same images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def exchange(draws: Sequence[tuple[float, float]], size: int, num_before: int) -> tuple[list[int], list[int]]:
    """Decides for each new image, in order, whether it is given back or an older one in exchange for it.

    Until the pool is full each is stored and given back. Later, with a probability of one half, a random image of the
    pool is given back, and the new one takes its place.

    Args:
        draws: two numbers in [0, 1) for each new image: whether, and which.
        size: images that the pool holds.
        num_before: new images before these.

    Returns:
        For each new image the number of the one that is given back, and for each place of the pool the number of the
        image that it holds then: 0 .. size-1 are the places before, size + i is new image i.

    Example:
        >>> exchange([(0.1, 0.0), (0.9, 0.0), (0.1, 0.6)], size=2, num_before=2)
        ([0, 3, 1], [2, 4])
    """
    held, given_back = list(range(size)), []
    for number, (whether, which) in enumerate(draws):
        new = size + number
        if num_before + number < size:
            held[num_before + number] = new
            given_back.append(new)
        elif size and whether < 0.5:
            place = int(which * size)
            given_back.append(held[place])
            held[place] = new
        else:
            given_back.append(new)
    return given_back, held


class Pool(nn.Module):
    """Generated images of earlier steps, in a buffer of checkpoints.

    Args:
        size: images, at least 0.
        channels: of an image.
        resolution: pixels of a side.
    """

    images: Tensor

    def __init__(self, size: int, channels: int, resolution: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("images", torch.zeros(size, channels, resolution, resolution))

    @torch.no_grad()
    def exchanged(self, new_BCHW: Tensor, draws_B2: Tensor, num_before: int) -> Tensor:
        """Exchanges new images for some of the pool.

        Args:
            new_BCHW: of the whole global batch, in its order.
            draws_B2: uniform in [0, 1).
            num_before: samples before this batch, each of which has brought an image.

        Returns:
            [B, C, H, W], what is given back for each.
        """
        if not self.size:
            return new_BCHW
        given_back, held = exchange(draws_B2.tolist(), self.size, num_before)  # waits for the GPU
        both = torch.cat((self.images, new_BCHW.to(self.images.dtype)))
        kept = both[held]
        # A step that is skipped for numbers that are not finite must leave none in the pool.
        is_finite = kept.isfinite().flatten(1).all(1).view(-1, 1, 1, 1)
        self.images.copy_(torch.where(is_finite, kept, self.images))
        return both[given_back]
