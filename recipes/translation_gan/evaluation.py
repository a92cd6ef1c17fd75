"""Evaluation: what is measured of two generators on held-out images, and what measures it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from trainkit import Runtime
from trainkit.data import Batch, Datasets, SideBySide
from trainkit.errors import DataError, require_at_least
from trainkit_recipes.progressive_gan.metrics.sliced_wasserstein import concatenated, distances, patches_of_levels
from trainkit_recipes.translation_gan.losses import l1

Side = Literal["first", "second"]
SIDES: tuple[Side, Side] = ("first", "second")
UNTRANSLATED, TRAINING_IMAGES = "untranslated images", "as many training images"
Pairs = Iterator[tuple[Batch, Tensor, Tensor]]


def other(side: Side) -> Side:
    """Returns the side that images of `side` are translated from."""
    return "first" if side == "second" else "second"


def images_of(data: Any, side: Side, dtype: torch.dtype) -> Tensor:
    """Makes images that a network takes of a batch's data.

    Args:
        data: of the batch: {"first": ..., "second": ...}, each images [B, C, R, R], or a mapping with `images`: uint8,
            or floats of -1 .. 1.
        side: which of them.
        dtype: of the result, where the images are bytes.

    Returns:
        [B, C, R, R] of -1 .. 1.

    Raises:
        DataError: for other data.
    """
    if not isinstance(data, Mapping) or side not in data:
        kind = [*data] if isinstance(data, Mapping) else type(data).__name__
        raise DataError(f"recipe=translation_gan needs items with 'first' and 'second' images; these have {kind}")
    images = data[side]
    images = images["images"] if isinstance(images, Mapping) else images
    return images.to(dtype) / 127.5 - 1.0 if images.dtype == torch.uint8 else images


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation measures and shows: the keys of `recipe.evaluation`.

    Args:
        batch_size: samples in a global batch.
        num_images: held-out images of each set at most.
        num_patches: of the sliced Wasserstein distance, per image.
        num_directions: of its projections.
        num_shown: rows in a picture.

    Raises:
        ConfigError: for values below 1.
    """

    batch_size: int = 16
    num_images: int = 1024
    num_patches: int = 64
    num_directions: int = 256
    num_shown: int = 8

    def __post_init__(self) -> None:
        require_at_least(1, "recipe.evaluation.", **asdict(self))


class Evaluator:
    """Measures two generators on the held-out images.

    Args:
        runtime: of the run.
        settings: what is measured.
        datasets: training and held-out images.
    """

    def __init__(self, runtime: Runtime, settings: Evaluation, datasets: Datasets) -> None:
        self.runtime, self.settings, self.datasets = runtime, settings, datasets
        self._baselines: dict[Side, dict[str, float]] = {}

    def measure(self, generators: Mapping[Side, nn.Module]) -> dict[str, float]:
        """Measures translated images against held-out ones of their side. Collective: every rank must call.

        Args:
            generators: by the side that they translate to.

        Returns:
            By name, the same on every rank: for each side `swd`, the distance of translated images to real ones; and
            `cycle`, the mean absolute difference (of values of -1 .. 1) of its own images after a translation to the
            other side and back. Without a side's name, the means of both.
        """
        found: dict[str, float] = {}
        for side in SIDES:
            sums: list[tuple[Tensor, int]] = []
            found[f"swd_{side}"] = self._distance(self._translated(side, generators, sums))
            total = self.runtime.ranks.all_reduce_sum(
                {"difference": sum(float(mean) * num for mean, num in sums), "num": sum(num for _, num in sums)}
            )
            found[f"cycle_{other(side)}"] = total["difference"] / total["num"]
        means = {name: (found[f"{name}_first"] + found[f"{name}_second"]) / 2 for name in ("swd", "cycle")}
        return {**means, **found}

    def baselines(self, side: Side) -> dict[str, float]:
        """Measures what is not translated: the other side's images, and training images. Collective.

        Args:
            side: whose held-out images they are held against.

        Returns:
            Sliced Wasserstein distances by name; that of training images only where there are enough.
        """
        if side not in self._baselines:
            found = {UNTRANSLATED: self._distance(self._untranslated(side))}
            train = self.datasets.train
            training = getattr(train, side, None)
            if training is not None and len(training) >= len(self._held_out()):
                found[TRAINING_IMAGES] = self._distance(self._training(side, training))
            self._baselines[side] = found
        return self._baselines[side]

    def shown(self) -> tuple[Tensor, Tensor]:
        """Returns held-out images of both sides, [N, C, R, R] each, on every rank."""
        held_out = self._held_out()
        num = min(len(held_out), self.settings.num_shown)
        samples = [held_out[index * len(held_out) // num] for index in range(num)]  # neighbours are often similar
        of = {
            side: torch.stack([images_of(sample, side, self.runtime.dtype) for sample in samples]).to(
                self.runtime.device, self.runtime.dtype
            )
            for side in SIDES
        }
        return of["first"], of["second"]

    def _held_out(self) -> Any:
        whole = self.datasets.held_out
        return Subset(whole, range(min(len(whole), self.settings.num_images)))

    @torch.no_grad()
    def _distance(self, pairs: Pairs) -> float:
        num, num_channels, sides = self.settings.num_patches, 1, []
        for batch, *both in pairs:
            num_channels = both[0].shape[1]
            sides.append([patches_of_levels(self.runtime, batch, images, num) for images in both])
        ours, theirs = (concatenated(parts) for parts in zip(*sides, strict=True))
        found = distances(
            self.runtime, ours, theirs, num_channels=num_channels, num_directions=self.settings.num_directions
        )
        return found["swd"]

    def _translated(self, side: Side, generators: Mapping[Side, nn.Module], sums: list[tuple[Tensor, int]]) -> Pairs:
        """Yields held-out images of a side and translated ones; adds to `sums` how far these are when taken back."""
        for batch in self._batches(self._held_out()):
            source = images_of(batch.data, other(side), self.runtime.dtype)
            translated = generators[side](source)
            back = generators[other(side)](translated)
            if len(batch):
                sums.append((l1(back, source), len(batch)))
            yield batch, images_of(batch.data, side, self.runtime.dtype), translated

    def _untranslated(self, side: Side) -> Pairs:
        for batch in self._batches(self._held_out()):
            real, source = (images_of(batch.data, name, self.runtime.dtype) for name in (side, other(side)))
            yield batch, real, source

    def _training(self, side: Side, training: Any) -> Pairs:
        held_out = self._held_out()
        # Evenly spread, because neighbours are often similar.
        chosen = Subset(training, [index * len(training) // len(held_out) for index in range(len(held_out))])
        both = self._batches(SideBySide(held_out, chosen))
        for batch in both:
            real = images_of(batch.data["first"], side, self.runtime.dtype)
            yield batch, real, images_of({side: batch.data["second"]}, side, self.runtime.dtype)

    def _batches(self, dataset: Any) -> Iterator[Batch]:
        return self.runtime.evaluation_batches(
            dataset, batch_size=self.settings.batch_size, collate=self.datasets.collate
        )
