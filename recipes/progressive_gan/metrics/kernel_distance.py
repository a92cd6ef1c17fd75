"""Kernel distance between two sets of features: unbiased MMD^2 with a cubic kernel (Binkowski et al. 2018).

With the features of Inception v3 it is the KID. Its expected value does not depend on the number of images, and it may
be negative where the sets are alike.
"""

import torch
from torch import Tensor

from trainkit import Runtime
from trainkit.data import Batch

SUBSET_SIZE, NUM_SUBSETS = 1000, 100


def kernel_distance(
    runtime: Runtime,
    ours_NF: Tensor,
    theirs_NF: Tensor,
    *,
    subset_size: int = SUBSET_SIZE,
    num_subsets: int = NUM_SUBSETS,
) -> float:
    """Computes the mean of MMD^2 over random subsets, in float64; sets that are not larger than one are taken whole.

    Collective: every rank must call.

    Args:
        runtime: of the run.
        ours_NF: features of one set, all of them on every rank; at least 2.
        theirs_NF: features of the other set, as many.
        subset_size: images in a subset.
        num_subsets: number of subsets, divided among the ranks.

    Returns:
        The distance, the same on every rank.
    """
    num = min(len(ours_NF), len(theirs_NF))
    num_subsets = num_subsets if num > subset_size else 1
    total = 0.0
    for number in range(runtime.ranks.rank, num_subsets, runtime.ranks.world_size):
        chosen = [_subset(runtime, number, x, subset_size, name) for x, name in ((ours_NF, "a"), (theirs_NF, "b"))]
        total += mmd2(chosen[0].double(), chosen[1].double())
    return runtime.ranks.all_reduce_sum({"total": total})["total"] / num_subsets


def mmd2(x_NF: Tensor, y_MF: Tensor) -> float:
    """Computes the unbiased estimate of MMD^2 with the kernel (x y / F + 1)^3.

    Args:
        x_NF: one sample.
        y_MF: the other.

    Returns:
        The estimate.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        gram = kernel(a, a)
        return (gram.sum() - gram.trace()) / (len(a) * (len(a) - 1))

    return float(within(x_NF) + within(y_MF) - 2 * kernel(x_NF, y_MF).mean())


def _subset(runtime: Runtime, number: int, features_NF: Tensor, size: int, name: str) -> Tensor:
    if len(features_NF) <= size:
        return features_NF
    numbers = torch.tensor([number])
    keys = runtime.rand(Batch(None, number, 1, numbers, numbers), len(features_NF), name=f"subsets {name}")[0]
    return features_NF[keys.argsort(stable=True)[:size].to(features_NF.device)]
