"""A folder of generated pictures, such as to train another model on."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from trainkit.errors import ConfigError
from trainkit_recipes.progressive_gan.latents import Sampler
from trainkit_recipes.progressive_gan.pictures import as_pixels

Report = Callable[[Iterable[int]], Iterable[int]]


def write_folder(
    sampler: Sampler,
    folder: Path,
    num: int,
    *,
    start: int = 0,
    classes: Sequence[str] = (),
    labels: Sequence[int] | None = None,
    report: Report = iter,
) -> None:
    """Writes single PNG files, named for the numbers of their latents.

    With classes, each has a folder of its name, and `dataset.json` holds the label of every file, as StyleGAN's tools
    write it: {"labels": [["cat/00000000.png", 0], ...]}. Classes take turns, so all get as many.

    Args:
        sampler: of the generator.
        folder: where to; made if it is not there.
        num: pictures.
        start: number of the first latent.
        classes: names by label; empty: there are none.
        labels: the classes that are written; None: all.
        report: iterates over the numbers of the batches, and may show progress.

    Raises:
        ConfigError: for a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--folder {folder}: it exists and is not empty; give another one")
    chosen = [*labels] if labels is not None else [*range(len(classes))]
    names = [_file_name(name) for name in classes]
    for label in chosen:
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for first in report(range(start, start + num, sampler.batch_size)):
        numbers = range(first, min(first + sampler.batch_size, start + num))
        of_batch = [chosen[number % len(chosen)] for number in numbers] if chosen else None
        pixels = as_pixels(sampler.images(sampler.latents(numbers), of_batch))
        for place, (number, picture) in enumerate(zip(numbers, pixels, strict=True)):
            name = f"{number:08d}.png" if of_batch is None else f"{names[of_batch[place]]}/{number:08d}.png"
            Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(folder / name)
            entries.append([name, None if of_batch is None else of_batch[place]])
    if classes:
        known = {"labels": entries, "classes": [*classes]}
        (folder / "dataset.json").write_text(json.dumps(known), encoding="utf-8")


def _file_name(name: str) -> str:
    """A class's name as that of a folder: a class may be called `a/b`."""
    kept = "".join("_" if letter in '/\\:*?"<>|' or not letter.isprintable() else letter for letter in name)
    return kept.strip(". ") or "_"
