"""Sliced Wasserstein distance between two sets of images (Karras et al. 2018, section 5 and appendix)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from trainkit import Runtime
from trainkit.data import Batch

PATCH = 7


def laplacian_pyramid(images_BCHW: Tensor, smallest: int = 16) -> list[Tensor]:
    """Band-passed images at the size given, half of it ... and last the low-pass residue, not below `smallest`."""
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
    """[B, P, C*7*7]: the 7x7 patches whose corners are at `where_BP2`, uniform in [0, 1), scaled to fit.

    Images smaller than 7x7 are one patch, whole.
    """
    size = min(PATCH, images_BCHW.shape[-1])
    unfolded_BCHWhw = images_BCHW.unfold(2, size, 1).unfold(3, size, 1)
    num_places = unfolded_BCHWhw.shape[2]
    rows_BP, columns_BP = (where_BP2 * num_places).long().unbind(-1)
    sample_B1 = torch.arange(len(images_BCHW), device=images_BCHW.device)[:, None]
    return unfolded_BCHWhw[sample_B1, :, rows_BP, columns_BP].flatten(2)


def sliced_wasserstein(ours_NF: Tensor, theirs_NF: Tensor, directions_FK: Tensor, num_channels: int) -> float:
    """Mean over unit directions of the Wasserstein-1 distance of the projections, times 1000.

    Two sets [N, C*7*7] of as many patches, each standardised by channel with its own mean and deviation.
    """
    directions_FK = directions_FK / directions_FK.norm(dim=0, keepdim=True)
    projected = [_standardise(x, num_channels) @ directions_FK for x in (ours_NF, theirs_NF)]
    first, second = (x.sort(dim=0).values for x in projected)
    return float((first - second).abs().mean()) * 1000.0


def _standardise(x_NF: Tensor, num_channels: int) -> Tensor:
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
    """`swd` between two sets of images, and where the pyramid has several levels `swd_<size>` of each.

    pairs: (batch, images, other images) over an evaluation: shares [B, C, R, R] of each rank. Patches and directions
    are the same in every call. Collective: every rank calls.
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
