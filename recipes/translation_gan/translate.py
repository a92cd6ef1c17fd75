"""Translates a folder of images: `python -m trainkit_recipes.translation_gan.translate RUN FOLDER --to second`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from trainkit.cli import add_trust, guarded
from trainkit.errors import CheckpointError, ConfigError, DataError

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
        whole: whether an image keeps its shape and size, instead of being cropped and scaled as in training.
        trust: whether code of the checkpoint's own may run.

    Returns:
        The files written.

    Raises:
        ConfigError: for an output that has content.
        DataError: where there is no image, or one cannot be read.
        CheckpointError: for a run of another recipe.
    """
    from trainkit import load_recipe

    names = [*_found(images)]
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output} exists already, and is not overwritten: give another path, or remove it")
    recipe = load_recipe(path, with_data=False, trust=trust)  # first: it says what to type without trainkit_recipes
    from trainkit_recipes.translation_gan.picture import translated
    from trainkit_recipes.translation_gan.train import TranslationGAN

    if not isinstance(recipe, TranslationGAN):
        recipe.runtime.close()
        raise CheckpointError(f"{path} holds a {type(recipe).__name__}, not a translation GAN")
    root, written = images if images.is_dir() else images.parent, []
    with recipe.averaged() as generators:
        module = {side: module for side, module in generators.items() if side == to}.popitem()[1]
        for number, name in enumerate(names, start=1):
            size = None if whole else recipe.shape.resolution
            picture = translated(module, name, size, recipe.shape.channels, recipe.runtime.dtype)
            target = output / _as_png(name, names).relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target)
            written.append(target)
            if sys.stderr.isatty():
                print(f"\r{number} of {len(names)} images", end="", file=sys.stderr, flush=True)
    recipe.runtime.close()
    return written


def _as_png(name: Path, names: list[Path]) -> Path:
    """The name of the translation, which keeps the suffix of an image that is called like another one."""
    others = [other for other in names if other.parent == name.parent and other.stem == name.stem]
    return name.with_suffix(".png") if len(others) == 1 else name.with_name(f"{name.name}.png")


def _found(images: Path) -> Iterator[Path]:
    from PIL import Image

    if not images.exists():
        raise DataError(f"{images} does not exist; give a folder of images, or one image")
    if images.is_file():
        yield images
        return
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    found = sorted(path for path in images.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not found:
        raise DataError(f"{images} holds no image; give a folder of images, or one image")
    yield from found


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
        "--whole", action="store_true", help="keep each image's shape and size (default: cropped as in training)"
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
