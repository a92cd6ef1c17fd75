"""The end of a run: everything that is measured of a generator, beside an untrained one and training images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainkit import Runtime
from trainkit_recipes.progressive_gan.copying_pictures import histogram, neighbours
from trainkit_recipes.progressive_gan.evaluation import Evaluator
from trainkit_recipes.progressive_gan.image_sets import ImageSet
from trainkit_recipes.progressive_gan.metrics.copying import Copying
from trainkit_recipes.progressive_gan.networks import Generator, Widths

TRAINING_IMAGES, UNTRAINED = "as many training images", "untrained generator"
TITLE, COPYING_TITLE = "measured against held-out images", "are training images copied"
"""Of the tables."""
DISTANCES = ("swd", "frechet", "kernel")
"""The metrics of which less is better, and of which a fraction is meaningful."""


@dataclass(kw_only=True)
class Measured:
    """What was measured at one resolution.

    Args:
        resolution: in pixels.
        num_images: of each set.
        values: by what was measured, such as `trained generator`, then by metric.
        copying: the distances to the nearest training images; None: not measured.
        pictures: by name, uint8 [H, W, 3].
    """

    resolution: int
    num_images: int
    values: dict[str, dict[str, float]]
    copying: Copying | None = None
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    def table(self) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Returns the columns, and a row per metric."""
        sets, (first, *_) = [*self.values], self.values.values()
        metrics = list(dict.fromkeys(name for values in self.values.values() for name in values))
        has_untrained = len(sets) > 1 and sets[0].startswith("untrained")
        rows: list[tuple[Any, ...]] = []
        for metric in metrics:
            cells: list[Any] = [
                round(values[metric], 4) if metric in values else None for values in self.values.values()
            ]
            if has_untrained:
                is_distance = metric.startswith(DISTANCES) and first.get(metric, 0) > 0
                cells.append(round(self.values[sets[1]][metric] / first[metric], 3) if is_distance else None)
            rows.append((metric, *cells))
        return [
            f"{self.num_images} images of {self.resolution}x{self.resolution}",
            *sets,
            *(["fraction of untrained"] if has_untrained else []),
        ], rows

    def copying_table(self) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Returns the columns and rows of the quantiles of distances to the nearest training image."""
        assert self.copying is not None
        columns = ["distance to the nearest training image", "of samples", "of held-out images"]
        rows: list[tuple[Any, ...]] = [(name, round(a, 3), round(b, 3)) for name, a, b in self.copying.rows()]
        return columns, [*rows, ("probability of samples as near by chance", round(self.copying.p_value(), 4), None)]

    def json(self) -> dict[str, Any]:
        """Returns everything but the pictures, for a JSON file."""
        found: dict[str, Any] = {"resolution": self.resolution, "num_images": self.num_images, "values": self.values}
        if self.copying is not None:
            columns, rows = self.copying_table()
            found["copying"] = [dict(zip(columns, row, strict=True)) for row in rows]
        return found

    def write(self, path: Path) -> None:
        """Writes the JSON file."""
        path.write_text(json.dumps(self.json(), indent=2) + "\n", encoding="utf-8")


def measure_all(
    evaluator: Evaluator, sets: dict[str, ImageSet], resolution: int, metrics: Sequence[str] | None = None
) -> Measured:
    """Measures sets of images, and as many training images beside. Collective: every rank must call.

    Args:
        evaluator: measures.
        sets: by name. The nearest training images are searched for the last one only.
        resolution: of the images.
        metrics: to measure; None: those of every evaluation and of the end.

    Returns:
        What was measured.
    """
    settings = evaluator.settings
    chosen = [*dict.fromkeys([*settings.metrics, *settings.at_end])] if metrics is None else [*metrics]
    of_all = [metric for metric in chosen if not metric.startswith("copying")]
    values = {name: evaluator.measure(images, resolution, of_all) for name, images in sets.items()}
    last, images = [*sets.items()][-1]
    measured = Measured(resolution=resolution, num_images=len(evaluator.held_out(resolution)), values=values)
    if "copying" in chosen:
        measured.copying, nearest = evaluator.copying(images, resolution)
        values[last] |= measured.copying.values()
        measured.pictures["nearest_training_images"] = neighbours(evaluator, images, nearest, resolution)
        measured.pictures["distances_to_training_images"] = histogram(measured.copying)
    if "copying_in_features" in chosen:
        values[last] |= evaluator.measure(images, resolution, ["copying_in_features"])
    if floors := evaluator.floors(resolution, chosen):
        values[TRAINING_IMAGES] = floors
    return measured


def untrained(runtime: Runtime, widths: Widths, resolution: int) -> Generator:
    """Makes a generator with the random weights of the run's seed, on its device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(runtime.seed + resolution)
        return Generator(widths, resolution).to(runtime.device, runtime.dtype)


def log_measured(measured: Measured, runtime: Runtime) -> None:
    """Logs the tables and pictures, and writes measured.json to the run directory.

    Args:
        measured: at the end of the run.
        runtime: of the run.
    """
    tracker, step = runtime.tracker, runtime.step
    tracker.table(step, TITLE, *measured.table())
    if measured.copying is not None:
        tracker.table(step, COPYING_TITLE, *measured.copying_table())
    for name, picture in measured.pictures.items():
        tracker.image(step, name, picture)
    if runtime.ranks.is_main and runtime.run_dir is not None:
        measured.write(runtime.run_dir / "measured.json")
