"""Translates a folder of images: `python -m trainkit_recipes.translation_gan.translate RUN FOLDER --to second`."""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli import add_trust, guarded
from trainkit.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from trainkit_recipes.translation_gan.picture import Pixels

SIDES = ("first", "second")
EXAMPLES = """\
examples:
  python -m trainkit_recipes.translation_gan.translate runs/zebras horses --to second --output as_zebras
  python -m trainkit_recipes.translation_gan.translate runs/zebras zebra.jpg --to first --whole --output as_horses
"""


def translate(
    path: Path, images: Path, *, to: str, output: Path, whole: bool = False, trust: bool = False
) -> list[Path]:
    """Translates images, and writes each as a PNG of the same name.

    Args:
        path: a run directory or a checkpoint.
        images: a folder, searched recursively, or one image.
        to: the side that they are translated to: `first` or `second`.
        output: a folder, which must not exist or be empty.
        whole: whether an image keeps its shape and size, instead of becoming a square as in training.
        trust: whether code of the checkpoint's own may run.

    Returns:
        The files written.

    Raises:
        ConfigError: for an output that has content or cannot be written.
        DataError: where there is no image, and, when the others are translated, for one that cannot be read.
        CheckpointError: for a run of another recipe.
    """
    from trainkit import load_recipe
    from trainkit.data import find_images, read_image, track

    names = find_images(images)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output} exists already, and is not overwritten: give another path, or remove it")
    recipe = load_recipe(path, with_data=False, trust=trust)  # first: it says what to type without trainkit_recipes
    from trainkit_recipes.translation_gan.picture import translated
    from trainkit_recipes.translation_gan.train import TranslationGAN

    try:
        if not isinstance(recipe, TranslationGAN):
            raise CheckpointError(f"{path} holds a {type(recipe).__name__}, not a translation GAN")
        settings: dict[str, Any] = {
            "resolution": None if whole else recipe.shape.resolution,
            "channels": recipe.shape.channels,
        }
        settings |= _settings_of(path)
        root, written, unreadable = images if images.is_dir() else images.parent, list[Path](), list[DataError]()
        with recipe.averaged() as generators:
            module = {side: module for side, module in generators.items() if side == to}.popitem()[1]
            pairs = zip(names, _as_pngs(names), strict=True)
            for name, png in track(pairs, "translating images", len(names)):
                try:
                    pixels = read_image(name, **settings)
                except DataError as error:
                    unreadable.append(error)
                    continue
                target = output / png.relative_to(root)
                _save(target, translated(module, pixels, recipe.runtime.dtype))
                written.append(target)
    finally:
        recipe.runtime.close()
    if unreadable:
        raise DataError(f"{unreadable[0]} ({len(unreadable)} of {len(names)} images; the others are in {output})")
    return written


def _settings_of(path: Path) -> dict[str, Any]:
    """How the run made images square and opaque; nothing where its data are no `UnpairedImages`."""
    from trainkit.checkpoint import find, read_manifest

    data = (read_manifest(find(path.expanduser()))["values"].get("config") or {}).get("data")
    images = data.get("images") if isinstance(data, Mapping) else None
    return {key: images[key] for key in ("fit", "background") if key in images} if isinstance(images, Mapping) else {}


def _save(target: Path, pixels: "Pixels") -> None:
    """Writes a PNG, completely or not at all."""
    from PIL import Image

    aside = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(aside, "PNG")
        aside.replace(target)
    except OSError as error:
        raise ConfigError(f"--output: {target} cannot be written: {error.strerror or error}") from error


def _as_pngs(names: Sequence[Path]) -> list[Path]:
    """The names of the translations; images that are called alike but for the suffix keep theirs."""
    short, whole = (
        [name.with_suffix(".png") for name in names],
        [name.with_name(f"{name.name}.png") for name in names],
    )
    num = Counter(short)
    chosen = [one if num[one] == 1 else other for one, other in zip(short, whole, strict=True)]
    return chosen if len({*chosen}) == len(chosen) else whole


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m trainkit_recipes.translation_gan.translate",
        description="Translate images with a trained translation GAN.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, help="a run directory, or one of its checkpoints/step_*")
    parser.add_argument("images", type=Path, help="a folder of images, searched recursively, or one image")
    parser.add_argument("--to", choices=SIDES, default="second", help="the side to translate to (default second)")
    parser.add_argument(
        "--output", type=Path, default=Path("translated"), help="folder to write to (default translated)"
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="keep each image's shape and size (default: squares, by data.images.fit of the run)",
    )
    add_trust(parser)
    given = parser.parse_args(arguments)

    def run() -> None:
        written = translate(
            given.path, given.images, to=given.to, output=given.output, whole=given.whole, trust=given.trust
        )
        print(f"{len(written)} images translated to the {given.to} side in {given.output}")

    return guarded(run, from_here=given.trust)


if __name__ == "__main__":
    sys.exit(main())
