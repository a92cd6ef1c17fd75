"""What the metrics need of a set of images, collected in one pass over it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainkit import Runtime
from trainkit.data import Batch
from trainkit_recipes.progressive_gan.metrics.features import FeatureNetwork
from trainkit_recipes.progressive_gan.metrics.frechet import frechet_distance
from trainkit_recipes.progressive_gan.metrics.kernel_distance import kernel_distance
from trainkit_recipes.progressive_gan.metrics.precision_recall import precision_recall
from trainkit_recipes.progressive_gan.metrics.sliced_wasserstein import (
    Levels,
    concatenated,
    distances,
    patches_of_levels,
)

OF_FEATURES = ("frechet", "kernel", "precision_recall")


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What was collected of a set of images.

    Args:
        num_channels: of the images.
        patches: of this rank's images, by level of the pyramid; None: not needed.
        features: [N, F] of all images in their order, on every rank; None: not needed.
    """

    num_channels: int
    patches: Levels | None = None
    features: Tensor | None = None


def collect(
    runtime: Runtime,
    batches: Iterable[tuple[Batch, Tensor]],
    *,
    num_patches: int | None,
    network: FeatureNetwork | None,
) -> Collected:
    """Reads a set of images once. Collective: every rank must call.

    Args:
        runtime: of the run.
        batches: of the set, see `ImageSet`.
        num_patches: per image; None: no patches are needed.
        network: makes the features; None: none are needed.

    Returns:
        What was collected.
    """
    parts: list[Levels] = []
    features: list[Tensor] = []
    num_channels = 1
    for batch, pictures in batches:
        num_channels = pictures.shape[1]
        if num_patches is not None:
            parts.append(patches_of_levels(runtime, batch, pictures, num_patches))
        if network is not None:
            features.append(runtime.ranks.all_gather(network(pictures), batch.size))
    return Collected(
        num_channels=num_channels,
        patches=concatenated(parts) if parts else None,
        features=torch.cat(features) if features else None,
    )


def compare(
    runtime: Runtime, metrics: tuple[str, ...], real: Collected, other: Collected, *, num_directions: int, suffix: str
) -> dict[str, float]:
    """Measures a set of images against real ones. Collective: every rank must call.

    Args:
        runtime: of the run.
        metrics: of `swd` and OF_FEATURES.
        real: of real images.
        other: of the others, as many.
        num_directions: of the sliced Wasserstein distance.
        suffix: after the names of metrics of features: which network made them.

    Returns:
        Values by name, the same on every rank.
    """
    found: dict[str, float] = {}
    if "swd" in metrics:
        assert real.patches is not None and other.patches is not None
        channels = real.num_channels
        found |= distances(runtime, other.patches, real.patches, num_channels=channels, num_directions=num_directions)
    of_features: dict[str, float] = {}
    if real.features is not None and other.features is not None:
        if "frechet" in metrics:
            of_features["frechet"] = frechet_distance(runtime, other.features, real.features)
        if "kernel" in metrics:
            of_features["kernel"] = kernel_distance(runtime, other.features, real.features)
        if "precision_recall" in metrics:
            of_features |= precision_recall(runtime, real.features, other.features)
    return found | {f"{name}_{suffix}": value for name, value in of_features.items()}
