"""Latents of a trained generator, and the images that it makes of them."""

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

    def shown(self, num: int, offset: int = 0) -> tuple[Tensor, int | None]:
        """Makes what a grid shows: images of the first latents, with classes in rows (see `grid_of_classes`).

        Args:
            num: images at most.
            offset: number of the first latent.

        Returns:
            The images, and the number of columns; None: as many as rows.
        """
        if not self.widths.num_classes:
            return self.images(self.latents(range(offset, offset + num))), None
        numbers, labels, columns = grid_of_classes(num, self.widths.num_classes)
        return self.images(self.latents([offset + number for number in numbers]), labels), columns
