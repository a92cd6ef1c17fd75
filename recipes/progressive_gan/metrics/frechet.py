"""Frechet distance between two sets of features, as normal distributions (Heusel et al. 2017).

With the features of Inception v3 it is the FID; with those of another network its values are others, and so is its
name.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from trainkit import Runtime


def frechet_distance(runtime: Runtime, ours_NF: Tensor, theirs_NF: Tensor) -> float:
    """Computes |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) in float64. Collective: every rank must call.

    It is biased upwards, the more so the fewer images there are: compare values of equal numbers of images.

    Args:
        runtime: of the run.
        ours_NF: features of one set, all of them on every rank; at least 2.
        theirs_NF: features of the other set.

    Returns:
        The distance, the same on every rank.
    """
    (mean, covariance), (other_mean, other_covariance) = (_moments(runtime, x) for x in (ours_NF, theirs_NF))
    root = _root(covariance)
    # The eigenvalues of C1 C2 are those of this symmetric matrix, which has no imaginary ones by rounding.
    eigenvalues = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0)
    trace = covariance.trace() + other_covariance.trace() - 2 * eigenvalues.sqrt().sum()
    return float((mean - other_mean).square().sum() + trace)


def _moments(runtime: Runtime, features_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [F] and unbiased covariance [F, F]; each rank sums over its share of the rows."""
    mine_nF = features_NF[runtime.ranks.rank :: runtime.ranks.world_size].double()
    mean_F = _summed(runtime, mine_nF.sum(dim=0)) / len(features_NF)
    centred_nF = mine_nF - mean_F
    return mean_F, _summed(runtime, centred_nF.T @ centred_nF) / (len(features_NF) - 1)


def _summed(runtime: Runtime, values: Tensor) -> Tensor:
    if runtime.ranks.world_size > 1:
        dist.all_reduce(values)
    return values


def _root(matrix_FF: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix_FF)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
