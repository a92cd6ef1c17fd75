"""Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020) of generated features."""

import torch
from torch import Tensor

from trainkit import Runtime
from trainkit_recipes.progressive_gan.metrics.nearest import blocks, tolerance

K = 3
"""Neighbours whose distance is the radius of a ball, for precision and recall."""
K_DENSITY = 5
"""The same for density and coverage."""


def precision_recall(runtime: Runtime, real_NF: Tensor, fake_MF: Tensor) -> dict[str, float]:
    """Computes the four shares; each rank compares its share of the rows with all. Collective: every rank must call.

    A ball of a set reaches from one of its vectors to the k-th nearest other one. Precision is the share of fake
    vectors in a ball of the real ones, recall of real vectors in a ball of the fake ones; density is the mean number of
    real balls that hold a fake vector, divided by k; coverage is the share of real balls that hold a fake vector.

    Args:
        runtime: of the run.
        real_NF: features of real images, all of them on every rank; more than K_DENSITY.
        fake_MF: features of the generated ones.

    Returns:
        `precision`, `recall`, `density`, `coverage`, the same on every rank.
    """
    slack = tolerance(real_NF, fake_MF)
    real_radii, fake_radii = (_radii(runtime, x) + slack for x in (real_NF, fake_MF))
    found = dict.fromkeys(("precision", "recall", "density", "coverage"), 0.0)
    mine = slice(runtime.ranks.rank, None, runtime.ranks.world_size)
    for squared in blocks(fake_MF[mine], real_NF):
        found["precision"] += float((squared <= real_radii[:, 0]).any(dim=1).sum()) / len(fake_MF)
        found["density"] += float((squared <= real_radii[:, 1]).sum()) / K_DENSITY / len(fake_MF)
    own_radii, start = real_radii[mine, 1], 0
    for squared in blocks(real_NF[mine], fake_MF):
        found["recall"] += float((squared <= fake_radii[:, 0]).any(dim=1).sum()) / len(real_NF)
        radii = own_radii[start : start + len(squared)]
        found["coverage"] += float((squared.amin(dim=1) <= radii).sum()) / len(real_NF)
        start += len(squared)
    return runtime.ranks.all_reduce_sum(found)


def _radii(runtime: Runtime, vectors_NF: Tensor) -> Tensor:
    """Squared distances to the K-th and the K_DENSITY-th nearest other vector, [N, 2], the same on every rank."""
    mine = vectors_NF[runtime.ranks.rank :: runtime.ranks.world_size]
    kept = [x.topk(K_DENSITY + 1, dim=1, largest=False).values[:, [K, K_DENSITY]] for x in blocks(mine, vectors_NF)]
    return runtime.ranks.all_gather(torch.cat(kept) if kept else mine.new_zeros(0, 2).double(), len(vectors_NF))
