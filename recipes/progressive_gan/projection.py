"""Projection: the latent whose image is nearest to a given picture."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainkit.data import read_image
from trainkit_recipes.progressive_gan.latents import Sampler

Fit = Literal["crop", "smart", "pad", "stretch"]
Report = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class Projection:
    """A latent that was found for a picture."""

    latent_Z: Tensor
    """Its elements."""
    label: int | None
    """Its class; None: the generator has none."""
    image_CHW: Tensor
    """Its image, of about -1 .. 1."""
    distance: float
    """Root of the mean squared difference of pixels of 0 .. 1."""
    distances: tuple[float, ...]
    """The same of every start, the best one first: the picture is found reliably where several agree."""

    @property
    def psnr(self) -> float:
        """The peak signal-to-noise ratio, in dB."""
        return -20.0 * math.log10(max(self.distance, 1e-10))


def project(
    sampler: Sampler,
    picture_CHW: Tensor,
    *,
    label: int | None = None,
    num_candidates: int = 1024,
    num_starts: int = 8,
    num_steps: int = 300,
    learning_rate: float = 0.1,
    report: Report = iter,
) -> Projection:
    """Searches the latent whose image is nearest to a picture.

    The images of many latents are compared with the picture; from the nearest ones Adam goes on, all at once, with a
    learning rate that falls to zero. The loss is the mean absolute difference over the levels of a pyramid of halved
    pictures, so that shapes that are moved a little still attract.

    Args:
        sampler: of the generator.
        picture_CHW: of -1 .. 1, at the resolution of the generator.
        label: the class; None: all are tried.
        num_candidates: latents that are compared.
        num_starts: of these, how many are improved.
        num_steps: of each.
        learning_rate: of the first step.
        report: iterates over the numbers of the steps, and may show progress.

    Returns:
        The best one found: another latent may be nearer.
    """
    target = picture_CHW.to(sampler.runtime.device, sampler.runtime.dtype)[None]
    latents = sampler.latents(range(num_candidates))
    num_classes = sampler.widths.num_classes
    labels = [number % max(1, num_classes) if label is None else label for number in range(num_candidates)]
    losses = _loss(sampler.images(latents, labels if num_classes else None), target)
    best = losses.argsort()[:num_starts]
    chosen = torch.tensor(labels, device=best.device)[best] if num_classes else None
    latents = _improved(sampler, latents[best], chosen, target, num_steps, learning_rate, report)
    images = sampler.images(latents, None if chosen is None else chosen.tolist())
    squares = (images.clamp(-1, 1) - target).div(2).square().flatten(1).mean(dim=1).sqrt()
    order = squares.argsort()
    first = int(order[0])
    found = None if chosen is None else int(chosen[first])
    distances = tuple(float(squares[number]) for number in order)
    return Projection(latents[first], found, images[first], distances[0], distances)


def _improved(
    sampler: Sampler,
    latents_NZ: Tensor,
    labels_N: Tensor | None,
    target: Tensor,
    num_steps: int,
    learning_rate: float,
    report: Report,
) -> Tensor:
    latents = _normalized(latents_NZ).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([latents], lr=learning_rate)
    best, best_losses = latents.detach().clone(), torch.full((len(latents),), math.inf, device=latents.device)
    for step in report(range(num_steps)):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / num_steps)) / 2
        losses = _loss(sampler.module(latents, sampler.fade, labels_N), target)
        is_better = losses.detach() < best_losses
        best[is_better], best_losses[is_better] = latents.detach()[is_better], losses.detach()[is_better].float()
        # Not backward(): the weights need no gradient.
        (latents.grad,) = torch.autograd.grad(losses.sum(), latents)
        optimizer.step()
        with torch.no_grad():
            latents.copy_(_normalized(latents))  # the generator sees the direction alone
    return best


def _normalized(latents_NZ: Tensor) -> Tensor:
    return latents_NZ / latents_NZ.square().mean(dim=1, keepdim=True).sqrt()


def _loss(images_NCHW: Tensor, target_1CHW: Tensor) -> Tensor:
    """[N]: mean absolute differences, averaged over the sizes."""
    levels = []
    while True:
        levels.append((images_NCHW - target_1CHW).abs().flatten(1).mean(dim=1))
        if images_NCHW.shape[-1] <= 4:
            return torch.stack(levels).mean(dim=0)
        images_NCHW, target_1CHW = F.avg_pool2d(images_NCHW, 2), F.avg_pool2d(target_1CHW, 2)


def read_picture(path: Path, resolution: int, channels: int, *, fit: Fit = "crop", background: str = "white") -> Tensor:
    """Reads a picture file as one of a data set, [channels, resolution, resolution] of -1 .. 1.

    Args:
        path: the file.
        resolution: pixels of a side.
        channels: 1 or 3.
        fit: how it becomes a square; see `Images`.
        background: the colour behind transparent and padded pictures.

    Raises:
        DataError: for a file that cannot be read.
    """
    pixels = read_image(path, channels=channels, resolution=resolution, fit=fit, background=background)
    return torch.from_numpy(pixels).float() / 127.5 - 1.0
