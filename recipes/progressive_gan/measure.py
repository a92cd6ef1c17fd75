"""Measures a trained generator, or any pictures: `python -m trainkit_recipes.progressive_gan.measure RUN`."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli import add_trust, guarded
from trainkit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trainkit_recipes.progressive_gan.end import Measured
    from trainkit_recipes.progressive_gan.evaluation import Evaluator
    from trainkit_recipes.progressive_gan.image_sets import ImageSet

MODULE = "trainkit_recipes.progressive_gan.measure"
DEFAULT = ("swd", "ms_ssim", "frechet", "kernel", "precision_recall", "copying")
EXAMPLES = f"""\
metrics: swd, ms_ssim, frechet, kernel, precision_recall, copying, copying_in_features,
with what each means in docs/gan_metrics.md

examples:
  python -m {MODULE} runs/glyphs
  python -m {MODULE} runs/faces --data faces.zip --metrics swd frechet --output faces.json
  python -m {MODULE} runs/faces --data faces.zip --features inception.onnx --input-size 299
  python -m {MODULE} --pictures generated/ --data faces/ --resolution 64
  torchrun --standalone --nproc-per-node=2 -m {MODULE} runs/glyphs
"""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What to measure.

    Args:
        metrics: of `evaluation.METRICS`.
        data: a folder or a zip file of real images; None: those that the run was trained on.
        num_images: at most; None: as the run has it.
        features: a file of a feature network; None: as the run has it.
        input_size: pixels of its input; None: as the run has it.
        output: a JSON file to write.
        images_to: a folder for the pictures of nearest training images.
    """

    metrics: Sequence[str] = DEFAULT
    data: Path | None = None
    num_images: int | None = None
    features: Path | None = None
    input_size: int | None = None
    output: Path | None = None
    images_to: Path | None = None

    def overrides(self) -> list[str]:
        """Returns them as keys of a run."""
        given = {
            "data.path": self.data and self.data.expanduser().resolve(),
            "recipe.evaluation.num_images": self.num_images,
            "recipe.evaluation.features.path": self.features and self.features.expanduser().resolve(),
            "recipe.evaluation.features.input_size": self.input_size,
            "recipe.evaluation.metrics": f"[{','.join(self.metrics)}]",
            "recipe.evaluation.at_end": "[]",
        }
        return [f"{key}={value}" for key, value in given.items() if value is not None]


@contextmanager
def of_run(path: Path, chosen: Chosen, trust: bool) -> "Iterator[tuple[Evaluator, ImageSet, int]]":
    """Context manager with what measures the averaged generator of a run. Collective: every rank must call.

    Args:
        path: a run directory or a checkpoint.
        chosen: what to measure.
        trust: whether code of the checkpoint's own may run.

    Yields:
        The evaluator, the images and their resolution.

    Raises:
        CheckpointError: for a run of another recipe.
    """
    from trainkit import load_recipe

    recipe = load_recipe(path, chosen.overrides(), trust=trust)
    from trainkit_recipes.progressive_gan.train import ProgressiveGAN

    try:
        if not isinstance(recipe, ProgressiveGAN):
            raise CheckpointError(f"{path} holds a {type(recipe).__name__}, not a progressive GAN")
        with recipe.G.averaged() as module:
            yield recipe.evaluator, recipe.images(module), recipe.phase.resolution
    finally:
        recipe.runtime.close()


@contextmanager
def of_pictures(
    pictures: Path, chosen: Chosen, resolution: int, channels: int
) -> "Iterator[tuple[Evaluator, ImageSet, int]]":
    """Context manager with what measures a folder or zip file of pictures. Collective: every rank must call.

    Args:
        pictures: the folder or zip file.
        chosen: what to measure; with `data`.
        resolution: that all pictures are cropped and scaled to.
        channels: 3 for colour, 1 for grey.

    Yields:
        The evaluator, the images and their resolution.

    Raises:
        ConfigError: without `data`.
    """
    from torch.utils.data import ConcatDataset

    from trainkit import Runtime, Tracker
    from trainkit.data import Images
    from trainkit_recipes.progressive_gan.evaluation import Evaluation, Evaluator
    from trainkit_recipes.progressive_gan.image_sets import RealImages
    from trainkit_recipes.progressive_gan.metrics.features import Features

    if chosen.data is None:
        raise ConfigError("--pictures is measured against real ones: give their folder or zip file as --data")
    features = Features(path=str(chosen.features) if chosen.features else None)
    if chosen.input_size is not None:
        features = replace(features, input_size=chosen.input_size)
    settings = Evaluation(metrics=chosen.metrics, at_end=(), features=features)
    if chosen.num_images is not None:
        settings = replace(settings, num_images=chosen.num_images)
    shape: dict[str, Any] = {"resolution": resolution, "channels": channels}
    real, others = Images(path=chosen.data, held_out=0.5, **shape), Images(path=pictures, held_out=0.5, **shape)
    with closing(Runtime(tracker=Tracker())) as runtime:
        load = runtime.ranks.first_on_host
        evaluator = Evaluator(runtime, settings, load(real.load))
        loaded = load(others.load)
        every: ConcatDataset[Any] = ConcatDataset([loaded.train, loaded.held_out])
        held_out = evaluator.held_out(resolution)
        images = RealImages(runtime, every, range(len(every)), resolution, settings.batch_size)
        num = min(len(held_out), len(evaluator.training(resolution)), len(images))
        evaluator.settings = replace(settings, num_images=num)
        yield evaluator, images.some(num), resolution


def show(measured: "Measured") -> None:
    """Prints the tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=120)
    tables = [measured.table()] + ([measured.copying_table()] if measured.copying is not None else [])
    for columns, rows in tables:
        table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(
                *(f"{cell:.5g}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in row)
            )
        console.print(table)
        print()


def measure(
    run: Path | None, pictures: Path | None, chosen: Chosen, *, resolution: int, channels: int, trust: bool = False
) -> None:
    """Measures images, prints tables, and writes the files that were asked for. Collective: every rank must call.

    Args:
        run: a run directory or a checkpoint; None: `pictures` are measured.
        pictures: a folder or zip file.
        chosen: what to measure.
        resolution: of pictures.
        channels: of pictures.
        trust: whether code of the checkpoint's own may run.

    Raises:
        ConfigError: unless exactly one of `run` and `pictures` is given, and for metrics that cannot be measured.
    """
    if (run is None) == (pictures is None):
        raise ConfigError("give either a RUN or --pictures FOLDER, which are measured against held-out real images")
    from trainkit_recipes.progressive_gan.evaluation import require_known

    require_known(chosen.metrics, "--metrics")
    context = (
        of_run(run, chosen, trust)
        if run is not None
        else of_pictures(Path(str(pictures)), chosen, resolution, channels)
    )
    with context as (evaluator, images, resolution):
        from trainkit_recipes.progressive_gan.end import measure_all

        is_main = evaluator.runtime.ranks.is_main
        evaluator.report = lambda line: print(line, file=sys.stderr) if is_main else None
        name = "images of the generator" if run is not None else "the pictures"
        measured = measure_all(evaluator, {name: images}, resolution, chosen.metrics)
        if is_main:
            show(measured)
            _write(measured, chosen)


def _write(measured: "Measured", chosen: Chosen) -> None:
    from PIL import Image

    if chosen.output is not None:
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
        measured.write(chosen.output)
        print(f"written to {chosen.output}")
    if chosen.images_to is not None:
        chosen.images_to.mkdir(parents=True, exist_ok=True)
        for name, picture in measured.pictures.items():
            Image.fromarray(picture).save(chosen.images_to / f"{name}.png")
            print(f"written to {chosen.images_to / name}.png")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description="Measure a trained progressive GAN, or any pictures, against real ones that training has not seen.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, nargs="?", help="a run directory, or one of its checkpoints/step_*")
    parser.add_argument("--pictures", type=Path, help="measure this folder or zip file of pictures in place of a run")
    parser.add_argument("--data", type=Path, help="folder or zip file of real images (default: those of the run)")
    parser.add_argument(
        "--metrics", nargs="+", default=list(DEFAULT), metavar="METRIC", help="default: all but the last"
    )
    parser.add_argument("--num-images", type=int, help="of each set at most (default: as the run has it, 16384)")
    parser.add_argument("--features", type=Path, help="TorchScript or ONNX file (default: EfficientNet-lite0)")
    parser.add_argument("--input-size", type=int, help="pixels of that network's input (default 224)")
    parser.add_argument("--resolution", type=int, default=64, help="that --pictures are scaled to (default 64)")
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3), help="of --pictures; 1: grey (default 3)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--images-to", type=Path, help="folder for pictures of samples beside their nearest images")
    add_trust(parser)
    given = parser.parse_args(arguments)
    names = ("metrics", "data", "num_images", "features", "input_size", "output", "images_to")
    chosen = Chosen(**{name: getattr(given, name) for name in names})
    shape = {"resolution": given.resolution, "channels": given.channels}
    return guarded(
        lambda: measure(given.run, given.pictures, chosen, **shape, trust=given.trust), from_here=given.trust
    )


if __name__ == "__main__":
    sys.exit(main())
