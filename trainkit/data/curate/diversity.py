"""Diversity: how much each example is like another one, by clusters of embeddings.

SemDeDup (Abbas et al., arXiv 2303.09540, section 3): embeddings are divided by k-means; within a cluster, examples are
ordered from the one that is farthest from the centre, and each one's similarity is its largest cosine to those before.
The examples that are kept are those of the lowest similarity.
"""

import math

import numpy as np
from numpy.typing import NDArray

_SEED = 20
_FITTED_ON = 50_000  # examples, evenly spread
_ROWS = 1024  # of a cluster that are compared at once
_LARGEST = 4096  # examples that are compared with one another; more of a cluster are divided
_ASSIGNED_AT_ONCE = 8192


def num_clusters_of(num: int) -> int:
    """Returns the clusters for so many examples: the square root, so that time grows with its cube only.

    Args:
        num: examples.
    """
    return max(1, min(2000, round(math.sqrt(num))))


def similarities(embeddings: NDArray[np.float32], num_clusters: int | None = None) -> NDArray[np.float32]:
    """Computes the similarity of each example to another one.

    Args:
        embeddings: [n, D]; may be mapped from a file. Rows of zeros are like nothing.
        num_clusters: None: `num_clusters_of(n)`.

    Returns:
        float32 [n], cosines; -1 where nothing of the cluster comes before.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums of several threads would round differently each time
        return _similarities(embeddings, num_clusters)


def _similarities(embeddings: NDArray[np.float32], num_clusters: int | None) -> NDArray[np.float32]:
    from sklearn.cluster import KMeans

    num = len(embeddings)
    found = np.full(num, -1.0, np.float32)
    if num < 2:
        return found
    chosen = np.unique(np.linspace(0, num - 1, min(num, _FITTED_ON)).astype(np.int64))
    clusters = min(num_clusters or num_clusters_of(num), len(chosen))
    means = KMeans(clusters, n_init=1, random_state=_SEED, max_iter=50).fit(_normalized(embeddings[chosen]))
    labels = np.concatenate(
        [means.predict(_normalized(embeddings[i : i + _ASSIGNED_AT_ONCE])) for i in range(0, num, _ASSIGNED_AT_ONCE)]
    )
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        centre = means.cluster_centers_[labels[members[0]]]
        for start in range(0, len(members), _LARGEST):
            part = members[start : start + _LARGEST]
            found[part] = _within(_normalized(embeddings[part]), centre)
    return found


def lowest_share(similarity: NDArray[np.float32], share: float) -> NDArray[np.bool_]:
    """Chooses the examples that are least like another one.

    Args:
        similarity: of each.
        share: that is chosen, rounded to a whole number of examples and at least one.

    Returns:
        bool [n]; of equal similarities the first.
    """
    is_kept = np.zeros(len(similarity), np.bool_)
    is_kept[np.argsort(similarity, kind="stable")[: max(1, round(share * len(similarity)))]] = True
    return is_kept


def _within(unit: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest cosine of each row of a cluster to those that are farther from its centre."""
    order = np.argsort(unit @ centre / max(float(np.linalg.norm(centre)), 1e-12), kind="stable")
    sorted_, found = unit[order], np.full(len(unit), -1.0, np.float32)
    for start in range(0, len(unit), _ROWS):
        stop = min(start + _ROWS, len(unit))
        cosines = sorted_[start:stop] @ sorted_[:stop].T
        later, earlier = np.ogrid[start:stop, :stop]
        cosines[earlier >= later] = -1.0
        found[order[start:stop]] = cosines.max(axis=1)
    return found


def _normalized(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = np.asarray(rows, np.float32)
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
