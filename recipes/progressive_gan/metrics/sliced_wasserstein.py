"""Sliced Wasserstein distance between two sets of images (Karras et al. 2018, section 5).

The Laplacian pyramid is that of Burt and Adelson (1983): REDUCE filters with [1, 4, 6, 4, 1] / 16 and takes every
second pixel, EXPAND inserts zeros and filters with twice the same weights. Images are mirrored at their edges, around
the centre of the last pixel.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trainkit import Runtime
from trainkit.data import Batch

PATCH = 7
SMALLEST = 16  # pixels of the low-pass residual
_KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_MOST_VALUES = 1 << 25  # projected values of a set at a time, per rank: 256 MB

Levels = dict[int, Tensor]
"""Patches [N, C*7*7] of a rank's images, by size of the level in pixels."""


def laplacian_pyramid(images_BCHW: Tensor, smallest: int = SMALLEST) -> list[Tensor]:
    """Computes the band-passed images at each size, and last the low-pass residual.

    Args:
        images_BCHW: the images.
        smallest: the smallest size, in pixels.

    Returns:
        [B, C, H, W] at the given size, half of it ... down to `smallest`.
    """
    levels = []
    while (size := images_BCHW.shape[-1]) // 2 >= smallest:
        filtered = _filter(size).to(images_BCHW)
        half = filtered[::2] @ images_BCHW @ filtered[::2].T
        expand = 2 * filtered[:, ::2]
        levels.append(images_BCHW - expand @ half @ expand.T)
        images_BCHW = half
    return [*levels, images_BCHW]


def _filter(size: int) -> Tensor:
    """The matrix [size, size] that filters an axis, mirrored at its ends."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for offset, weight in enumerate(_KERNEL, start=-2):
        taken = (torch.arange(size) + offset).abs()
        taken = torch.minimum(taken, 2 * (size - 1) - taken)
        matrix[torch.arange(size), taken] += weight
    return matrix


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


def patches_of_levels(runtime: Runtime, batch: Batch, images_BCHW: Tensor, num_patches: int) -> Levels:
    """Extracts patches of every level, at random places that depend on the samples' positions alone.

    Args:
        runtime: of the run.
        batch: of the images.
        images_BCHW: this rank's images.
        num_patches: per image.

    Returns:
        [B*P, C*7*7] by size of the level.
    """
    where_BP2 = runtime.rand(batch, num_patches, 2, name="patches")
    levels = laplacian_pyramid(images_BCHW.double())
    return {level.shape[-1]: patches(level, where_BP2).flatten(0, 1).to(images_BCHW.dtype) for level in levels}


def concatenated(parts: Iterable[Levels]) -> Levels:
    """Joins the patches of batches, level by level."""
    whole: dict[int, list[Tensor]] = {}
    for levels in parts:
        for size, rows in levels.items():
            whole.setdefault(size, []).append(rows)
    return {size: torch.cat(rows) for size, rows in whole.items()}


def distances(
    runtime: Runtime, ours: Levels, theirs: Levels, *, num_channels: int, num_directions: int
) -> dict[str, float]:
    """Computes `swd`, the mean over the levels, and `swd_<size>` of each where there are several. Collective.

    Args:
        runtime: of the run.
        ours: patches of this rank's images of one set.
        theirs: of the other set, as many.
        num_channels: of the images.
        num_directions: of the projections: 512 are the paper's four times 128, whose distances are averaged.

    Returns:
        The distances by name, the same on every rank.
    """
    first_sample = Batch(None, 0, 1, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    found = {}
    for size in ours:
        directions_FK = runtime.randn(first_sample, ours[size].shape[1], num_directions, name="directions")[0]
        found[f"swd_{size}"] = sliced_wasserstein(runtime, ours[size], theirs[size], directions_FK, num_channels)
    return {"swd": sum(found.values()) / len(found), **(found if len(found) > 1 else {})}


def sliced_wasserstein(
    runtime: Runtime, ours_NF: Tensor, theirs_NF: Tensor, directions_FK: Tensor, num_channels: int
) -> float:
    """Computes the mean over unit directions of the Wasserstein-1 distance of the projections, times 1000.

    Each set is standardized by channel with its own mean and deviation. The directions are divided among the ranks:
    each sorts the projections of all ranks' patches on its own. In float64. Collective: every rank must call.

    Args:
        runtime: of the run.
        ours_NF: [N, C*7*7], this rank's patches of one set.
        theirs_NF: [N, C*7*7], this rank's patches of the other set, which has as many in all.
        directions_FK: [C*7*7, K], not normalized, the same on every rank.
        num_channels: C.

    Returns:
        The distance, the same on every rank.
    """
    directions_FK = directions_FK.double() / directions_FK.double().norm(dim=0)
    projections = [_projections(runtime, x, directions_FK, num_channels) for x in (ours_NF, theirs_NF)]
    total, num = 0.0, 0
    for first, second in zip(*projections, strict=True):
        total += float((first - second).abs().sum())
        num += first.numel()
    summed = runtime.ranks.all_reduce_sum({"total": total, "num": num})
    return summed["total"] / summed["num"] * 1000.0


def _projections(runtime: Runtime, rows_NF: Tensor, directions_FK: Tensor, num_channels: int) -> Iterator[Tensor]:
    """Yields sorted projections of all ranks' rows on some of this rank's directions at a time, [k, N]."""
    ranks = runtime.ranks
    counts = [int(count) for count in ranks.all_gather_object(len(rows_NF))]
    scaled_FK, offset_K = _standardizing(runtime, rows_NF, directions_FK, num_channels)
    at_once = max(1, _MOST_VALUES // max(1, sum(counts))) * ranks.world_size
    for scaled, offset in zip(scaled_FK.split(at_once, dim=1), offset_K.split(at_once), strict=True):
        mine_KN = scaled.T @ rows_NF.double().T - offset[:, None]
        yield _sorted(_exchanged(mine_KN, counts, ranks.rank) if ranks.world_size > 1 else mine_KN)


def _standardizing(
    runtime: Runtime, rows_NF: Tensor, directions_FK: Tensor, num_channels: int
) -> tuple[Tensor, Tensor]:
    """Directions and offsets with which projections are those of rows that are standardized by channel."""
    by_channel = rows_NF.double().unflatten(1, (num_channels, -1))  # a rank may have no row

    def sums(values_C: Tensor) -> Tensor:
        summed = runtime.ranks.all_reduce_sum({str(channel): value for channel, value in enumerate(values_C)})
        return torch.tensor([*summed.values()], dtype=torch.float64, device=rows_NF.device)

    per_channel = by_channel.shape[2] * runtime.ranks.all_reduce_sum({"rows": len(rows_NF)})["rows"]
    mean_C = sums(by_channel.sum(dim=(0, 2))) / per_channel
    deviation_C = (sums((by_channel - mean_C[:, None]).square().sum(dim=(0, 2))) / per_channel).sqrt().clamp(min=1e-8)
    mean_F, deviation_F = (x.repeat_interleave(by_channel.shape[2]) for x in (mean_C, deviation_C))
    scaled_FK = directions_FK / deviation_F[:, None]
    return scaled_FK, mean_F @ scaled_FK


def _exchanged(mine_KN: Tensor, counts: list[int], rank: int) -> Tensor:
    """Sends each rank the projections on its directions; returns all ranks' on this rank's, [k, sum(counts)]."""
    shares = [len(part) for part in torch.arange(len(mine_KN)).tensor_split(len(counts))]
    received = mine_KN.new_empty(shares[rank] * sum(counts))
    dist.all_to_all_single(
        received,
        mine_KN.flatten(),
        output_split_sizes=[shares[rank] * count for count in counts],
        input_split_sizes=[share * counts[rank] for share in shares],
    )
    parts = received.split([shares[rank] * count for count in counts])
    return torch.cat([part.view(shares[rank], count) for part, count in zip(parts, counts, strict=True)], dim=1)


def _sorted(values_KN: Tensor) -> Tensor:
    if values_KN.device.type != "cpu":
        return values_KN.sort(dim=1).values
    return torch.from_numpy(np.sort(values_KN.numpy(), axis=1))  # twenty times as fast as torch's on a CPU
