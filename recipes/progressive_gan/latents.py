"""Latents of a trained generator, and the images that it makes of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainkit import Runtime
from trainkit.data import Batch
from trainkit_recipes.progressive_gan.classes import grid_of_classes
from trainkit_recipes.progressive_gan.networks import Widths


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Makes images of a generator from numbered latents, which are the same throughout a run and after it.

    Args:
        runtime: of the run; its seed is that of the latents.
        module: the generator.
        widths: of its layers.
        fade: weight of its newest layers.
        batch_size: images that are made at once.
    """

    runtime: Runtime
    module: nn.Module
    widths: Widths
    fade: float = 1.0
    batch_size: int = 64

    def latents(self, numbers: Sequence[int]) -> Tensor:
        """Returns the latents [len(numbers), Z] of these numbers."""
        chosen = torch.tensor([*numbers], dtype=torch.int64)
        batch = Batch(None, 0, len(chosen), chosen, chosen)
        return self.runtime.randn(batch, self.widths.latent_dim, name="shown")

    def images(self, latents_NZ: Tensor, labels: Sequence[int] | None = None) -> Tensor:
        """Makes images of latents.

        Args:
            latents_NZ: [N, Z].
            labels: N classes; needed where the generator has any.

        Returns:
            [N, C, R, R] of about -1 .. 1, without a gradient.
        """
        given = None if labels is None else torch.tensor([*labels], device=latents_NZ.device)
        made = []
        with torch.no_grad():
            for start in range(0, len(latents_NZ), self.batch_size):
                part = slice(start, start + self.batch_size)
                made.append(self.module(latents_NZ[part], self.fade, None if given is None else given[part]))
        return torch.cat(made)

    def shown(self, num: int, offset: int = 0, of_classes: Sequence[int] | None = None) -> tuple[Tensor, int | None]:
        """Makes what a grid shows: images of the first latents, with classes in rows (see `grid_of_classes`).

        Args:
            num: images at most.
            offset: number of the first latent.
            of_classes: those that are shown; None: all.

        Returns:
            The images, and the number of columns; None: as many as rows.
        """
        if not self.widths.num_classes:
            return self.images(self.latents(range(offset, offset + num))), None
        chosen = of_classes or range(self.widths.num_classes)
        numbers, rows, columns = grid_of_classes(num, len(chosen))
        labels = [chosen[row] for row in rows]
        return self.images(self.latents([offset + number for number in numbers]), labels), columns


def slerp(first_NZ: Tensor, second_NZ: Tensor, weight: float) -> Tensor:
    """Interpolates between directions at constant speed, on the sphere that the generator projects latents to.

    On the straight line between two latents the images would change slowly at its ends and fast in its middle.

    Args:
        first_NZ: latents.
        second_NZ: latents.
        weight: of the second, in 0 .. 1.

    Returns:
        [N, Z], each with a mean square of 1.

    Example:
        >>> slerp(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]]), 0.5).round(decimals=4)
        tensor([[1., 1.]])
    """
    first, second = (x / x.square().mean(dim=1, keepdim=True).sqrt() for x in (first_NZ, second_NZ))
    cosine = (first * second).mean(dim=1, keepdim=True).clamp(-1.0, 1.0)
    angle = cosine.acos()
    sine = angle.sin()
    along = (((1 - weight) * angle).sin() * first + (weight * angle).sin() * second) / sine
    # Where the angle is 0 there is nothing to turn by; where it is pi any way is as short.
    return torch.where(sine > 1e-6, along, first if weight < 0.5 else second)


def closed_path(anchors_NZ: Tensor, num_frames: int) -> Tensor:
    """Interpolates from each anchor to the next, and from the last to the first.

    Args:
        anchors_NZ: latents.
        num_frames: on the whole path.

    Returns:
        [num_frames, Z]; the first one is the first anchor.
    """
    num, frames = len(anchors_NZ), []
    for frame in range(num_frames):
        place = frame * num / num_frames
        here = math.floor(place)
        frames.append(slerp(anchors_NZ[[here]], anchors_NZ[[(here + 1) % num]], place - here))
    return torch.cat(frames)
