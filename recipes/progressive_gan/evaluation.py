"""Evaluation: what is measured of a generator, and an evaluator that measures it on held-out images."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from trainkit import Runtime
from trainkit.data import Batch, Datasets
from trainkit.errors import require_at_least
from trainkit_recipes.progressive_gan import metrics
from trainkit_recipes.progressive_gan.real_images import at_resolution, real_images

Generate = Callable[[Batch], Tensor]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation measures and shows: the keys of `recipe.evaluation`.

    Args:
        batch_size: samples in a global batch.
        num_images: held-out images at most.
        num_patches: of the sliced Wasserstein distance, per image.
        num_directions: of its projections.
        num_shown: images in a grid.

    Raises:
        ConfigError: for values below 1.
    """

    batch_size: int = 64
    num_images: int = 16_384
    num_patches: int = 64
    num_directions: int = 256
    num_shown: int = 64

    def __post_init__(self) -> None:
        require_at_least(1, "recipe.evaluation.", **asdict(self))


class Evaluator:
    """Measures images of a generator against the held-out ones.

    Args:
        runtime: of the run.
        settings: what is measured.
        datasets: training and held-out images.
    """

    def __init__(self, runtime: Runtime, settings: Evaluation, datasets: Datasets) -> None:
        self.runtime, self.settings, self.datasets = runtime, settings, datasets
        self._floors: dict[int, float] = {}

    def distances(self, generate: Generate | None, resolution: int) -> dict[str, float]:
        """Measures held-out images against generated ones. Collective: every rank must call.

        Args:
            generate: makes [len(batch), C, R, R] for a batch of held-out images; None: training images are measured
                in place of generated ones.
            resolution: of the images, R.

        Returns:
            Distances by name, the same on every rank.
        """
        with torch.no_grad():
            return metrics.distances(
                self.runtime,
                self._pairs(generate, resolution),
                num_patches=self.settings.num_patches,
                num_directions=self.settings.num_directions,
            )

    def floor(self, resolution: int) -> float | None:
        """Returns the distance between training and held-out images; None if there are too few. Collective."""
        if len(self.datasets.train) < len(self.datasets.held_out):
            return None
        if resolution not in self._floors:
            self._floors[resolution] = self.distances(None, resolution)["swd"]
        return self._floors[resolution]

    def _pairs(self, generate: Generate | None, resolution: int) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Yields this rank's (batch, held-out images, other images) over the held-out split."""
        whole = at_resolution(self.datasets.held_out, resolution)
        held_out = Subset(whole, range(min(len(whole), self.settings.num_images)))
        measured = self._measured(held_out, resolution)
        if generate is None:
            training = at_resolution(self.datasets.train, resolution)
            # Evenly spread over the split, because neighbours in it are often similar.
            training = Subset(training, [i * len(training) // len(held_out) for i in range(len(held_out))])
            for (batch, real), (_, other) in zip(measured, self._measured(training, resolution), strict=True):
                yield batch, real, other
        else:
            for batch, real in measured:
                yield batch, real, generate(batch)

    def _measured(self, dataset: Any, resolution: int) -> Iterator[tuple[Batch, Tensor]]:
        for batch in self.runtime.evaluation_batches(
            dataset, batch_size=self.settings.batch_size, collate=self.datasets.collate
        ):
            yield batch, real_images(batch.data, resolution, self.runtime.dtype)
