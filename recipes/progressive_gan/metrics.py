"""Sliced Wasserstein distance between two sets of images (Karras et al. 2018, section 5 and appendix)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from trainkit import Runtime
from trainkit.data import Batch

PATCH = 7


def laplacian_pyramid(images_BCHW: Tensor, smallest: int = 16) -> list[Tensor]:
    """Computes the band-passed images at each size, and last the low-pass residual.

    Args:
        images_BCHW: the images.
        smallest: the smallest size, in pixels.

    Returns:
        [B, C, H, W] at the given size, half of it ... down to `smallest`.
    """
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=images_BCHW.dtype, device=images_BCHW.device) / 16.0
    num_channels = images_BCHW.shape[1]
    kernel_2d = (kernel[:, None] * kernel[None, :]).expand(num_channels, 1, 5, 5)
    levels = []
    while images_BCHW.shape[-1] // 2 >= smallest:
        blurred = F.conv2d(F.pad(images_BCHW, (2, 2, 2, 2), mode="reflect"), kernel_2d, groups=num_channels)
        half = blurred[:, :, ::2, ::2]
        up = F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)
        levels.append(images_BCHW - up)
        images_BCHW = half
    return [*levels, images_BCHW]


def patches(images_BCHW: Tensor, where_BP2: Tensor) -> Tensor:
    """Extracts 7x7 patches; an image smaller than 7x7 is one patch.

    Args:
        images_BCHW: the images.
        where_BP2: corners of the patches, uniform in [0, 1), scaled to the image.

    Returns:
        [B, P, C*7*7].
    """
    size = min(PATCH, images_BCHW.shape[-1])
    unfolded_BCHWhw = images_BCHW.unfold(2, size, 1).unfold(3, size, 1)
    num_corners = unfolded_BCHWhw.shape[2]
    rows_BP, columns_BP = (where_BP2 * num_corners).long().unbind(-1)
    sample_B1 = torch.arange(len(images_BCHW), device=images_BCHW.device)[:, None]
    return unfolded_BCHWhw[sample_B1, :, rows_BP, columns_BP].flatten(2)


def sliced_wasserstein(ours_NF: Tensor, theirs_NF: Tensor, directions_FK: Tensor, num_channels: int) -> float:
    """Computes the mean over unit directions of the Wasserstein-1 distance of the projections, times 1000.

    Each set is standardized by channel with its own mean and deviation.

    Args:
        ours_NF: [N, C*7*7], patches of one set.
        theirs_NF: [N, C*7*7], the same number of patches of the other set.
        directions_FK: [C*7*7, K], not normalized.
        num_channels: C.

    Returns:
        The distance.
    """
    directions_FK = directions_FK / directions_FK.norm(dim=0, keepdim=True)
    projected = [_standardized(x, num_channels) @ directions_FK for x in (ours_NF, theirs_NF)]
    first, second = (x.sort(dim=0).values for x in projected)
    return float((first - second).abs().mean()) * 1000.0


def _standardized(x_NF: Tensor, num_channels: int) -> Tensor:
    by_channel = x_NF.view(len(x_NF), num_channels, -1)
    mean = by_channel.mean(dim=(0, 2), keepdim=True)
    deviation = by_channel.std(dim=(0, 2), keepdim=True, correction=0)
    return ((by_channel - mean) / deviation.clamp(min=1e-8)).flatten(1)


def distances(
    runtime: Runtime,
    pairs: Iterable[tuple[Batch, Tensor, Tensor]],
    *,
    num_patches: int,
    num_directions: int,
) -> dict[str, float]:
    """Computes `swd` between two sets of images, and `swd_<size>` of each level where the pyramid has several.

    Patches and directions are the same in every call. Collective: every rank must call.

    Args:
        runtime: of the run.
        pairs: (batch, images, other images) over an evaluation: this rank's local batches [B, C, R, R].
        num_patches: per image.
        num_directions: of the projections.

    Returns:
        The distances by name, the same on every rank.
    """
    levels: dict[int, list[tuple[Tensor, Tensor]]] = {}
    num_channels = 1
    for batch, *sets in pairs:
        num_channels = sets[0].shape[1]
        where_BP2 = runtime.rand(batch, num_patches, 2, name="patches")
        for level in zip(*(laplacian_pyramid(images) for images in sets), strict=True):
            first, second = (
                runtime.ranks.all_gather(patches(images, where_BP2), batch.size).flatten(0, 1) for images in level
            )
            levels.setdefault(level[0].shape[-1], []).append((first, second))
    first_sample = Batch(None, 0, 1, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    found = {}
    for size, parts in levels.items():
        first, second = (torch.cat(part) for part in zip(*parts, strict=True))
        directions = runtime.randn(first_sample, first.shape[1], num_directions, name="directions")[0]
        found[f"swd_{size}"] = sliced_wasserstein(first, second, directions, num_channels)
    mean = sum(found.values()) / len(found)
    return {"swd": mean, **(found if len(found) > 1 else {})}
