"""Feature maps of a trained generator, changed on their way to the image: truncation, and style by resolution."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from trainkit.errors import ConfigError
from trainkit_recipes.progressive_gan.latents import Sampler

_EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class Truncated(Sampler):
    """Draws the first feature map of each image towards the mean one: more typical images, of less variety.

    The truncation of other generators does nothing here: latents are normalized, so a shorter one gives the same image,
    and on the sphere no direction is more probable than another. The first feature map, which the latent is mapped to,
    takes the place that w has in StyleGAN: x = mean + psi * (x - mean).

    Args:
        means_KCHW: the mean maps of all classes, as `mean_maps` computes them; one without classes.
        psi: 1: the images stay as they are; 0: one image for all latents (of a class).
    """

    means_KCHW: Tensor
    psi: float

    def images(self, latents_NZ: Tensor, labels: Sequence[int] | None = None) -> Tensor:
        """As `Sampler.images`, truncated."""
        given = torch.tensor([*labels] if labels is not None else [0] * len(latents_NZ))
        means = iter(self.means_KCHW[given.to(latents_NZ.device)].split(self.batch_size))
        with replaced(self.module, {4: lambda x: torch.lerp(next(means), x, self.psi)}):
            return super().images(latents_NZ, labels)


def mean_maps(sampler: Sampler, num: int = 1024) -> Tensor:
    """Computes the mean of the first feature map over `num` latents, [K, C, 4, 4]; with classes for each of the K."""
    num_classes = sampler.widths.num_classes
    latents, means = sampler.latents(range(num)), []
    for label in range(max(1, num_classes)):
        sums: list[Tensor] = []

        def add(x_BCHW: Tensor, sums: list[Tensor] = sums) -> Tensor:
            sums.append(x_BCHW.sum(dim=0))
            return x_BCHW

        with replaced(sampler.module, {4: add}):
            sampler.images(latents, [label] * num if num_classes else None)
        means.append(torch.stack(sums).sum(dim=0) / num)
    return torch.stack(means)


def truncated(sampler: Sampler, psi: float, means_KCHW: Tensor | None = None) -> Sampler:
    """Returns a sampler of truncated images; `sampler` itself for psi = 1.

    Args:
        sampler: of the generator.
        psi: see `Truncated`.
        means_KCHW: as of `mean_maps`; None: they are computed.

    Raises:
        ConfigError: for a psi outside 0 .. 1.
    """
    if not 0.0 <= psi <= 1.0:
        raise ConfigError(f"truncation {psi}: must be 0 (one typical image) .. 1 (all variety)")
    if psi == 1.0:
        return sampler
    given = {field.name: getattr(sampler, field.name) for field in fields(Sampler)}
    means = mean_maps(sampler) if means_KCHW is None else means_KCHW
    return Truncated(**given, means_KCHW=means, psi=psi)


def with_style(
    sampler: Sampler,
    coarse_NZ: Tensor,
    fine_NZ: Tensor,
    resolution: int,
    labels: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Tensor:
    """Makes images with the layout of one latent and, from a resolution on, the style of another.

    The generator has one input, at 4x4, so layers cannot be given different latents. From `resolution` on, each channel
    of a feature map is given the mean and the standard deviation that it has for the other latent (adaptive instance
    normalization, arXiv 1703.06868). That carries colour, contrast and thickness; it cannot carry shapes that the
    layout does not have, and the generator was not trained on such maps: at low resolutions images can degrade.

    Args:
        sampler: of the generator.
        coarse_NZ: latents of the layout.
        fine_NZ: latents of the style, as many.
        resolution: the lowest one with the style: from 4 (all layers) to that of the images.
        labels: classes of both, where the generator has any.

    Returns:
        [N, C, R, R].

    Raises:
        ConfigError: for a resolution that the generator does not have.
    """
    sizes = [int(size) for size in _blocks(sampler.module)]
    if resolution not in sizes:
        raise ConfigError(f"style from {resolution}x{resolution} on: must be one of {', '.join(map(str, sizes))}")
    styled = [size for size in sizes if size >= resolution]
    statistics: dict[int, list[tuple[Tensor, Tensor]]] = {size: [] for size in styled}
    of_coarse, of_fine = labels if labels is not None else (None, None)

    def watch(size: int) -> Callable[[Tensor], Tensor]:
        def seen(x_BCHW: Tensor) -> Tensor:
            statistics[size].append(_statistics(x_BCHW))
            return x_BCHW

        return seen

    def restyle(size: int) -> Callable[[Tensor], Tensor]:
        given = iter(statistics[size])
        return lambda x: _restyled(x, *next(given))

    with replaced(sampler.module, {size: watch(size) for size in styled}):
        sampler.images(fine_NZ, of_fine)
    with replaced(sampler.module, {size: restyle(size) for size in styled}):
        return sampler.images(coarse_NZ, of_coarse)


@contextmanager
def replaced(module: nn.Module, changes: Mapping[int, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Context manager within which feature maps of a generator are changed.

    Args:
        module: the generator.
        changes: by resolution, a function of the feature map [B, C, H, W] at the end of its block.
    """
    blocks = _blocks(module)
    hooks = [
        blocks[str(size)].register_forward_hook(lambda _, __, x, change=change: change(x))
        for size, change in changes.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _blocks(module: nn.Module) -> dict[str, nn.Module]:
    return dict(module.get_submodule("blocks").named_children())


def _statistics(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x_BCHW, dim=(2, 3), keepdim=True, correction=0)
    return mean, (variance + _EPS).sqrt()


def _restyled(x_BCHW: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    own_mean, own_deviation = _statistics(x_BCHW)
    return (x_BCHW - own_mean) / own_deviation * deviation + mean
