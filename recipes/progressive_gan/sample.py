"""Draws images from a trained generator: `python -m trainkit_recipes.progressive_gan.sample RUN --num 64`."""

import argparse
import sys
from pathlib import Path

from trainkit.cli import add_trust, guarded
from trainkit.errors import CheckpointError, ConfigError

EXAMPLES = """\
examples:
  python -m trainkit_recipes.progressive_gan.sample runs/glyphs --num 64 --output letters.png
  python -m trainkit_recipes.progressive_gan.sample runs/glyphs --start 64 --cell 128
"""


def sample(path: Path, *, num: int, output: Path, start: int = 0, cell: int | None = None, trust: bool = False) -> None:
    """Writes a grid of images from the averaged generator of a run.

    Args:
        path: a run directory or a checkpoint.
        num: number of images.
        output: the picture to write; its suffix is the format.
        start: number of the first latent.
        cell: pixels of an image in the grid; None: as in training.
        trust: whether code of the checkpoint's own may run.

    Raises:
        ConfigError: for numbers out of range, and an unknown picture format.
        CheckpointError: for a run of another recipe.
    """
    from PIL import Image

    from trainkit import load_recipe

    if num < 1 or start < 0:
        raise ConfigError(f"--num {num} --start {start}: there must be 1 or more images, from 0 on")
    if output.suffix.lower() not in Image.registered_extensions():
        raise ConfigError(f"--output {output}: its suffix names no picture format; try {output.stem}.png")
    recipe = load_recipe(path, with_data=False, trust=trust)  # first: it says what to type without trainkit_recipes
    from trainkit_recipes.progressive_gan.pictures import grid
    from trainkit_recipes.progressive_gan.train import CELL, ProgressiveGAN

    if not isinstance(recipe, ProgressiveGAN):
        recipe.runtime.close()
        raise CheckpointError(f"{path} holds a {type(recipe).__name__}, not a progressive GAN")
    with recipe.G.averaged() as module:
        images, columns = recipe.sampler(module).shown(num, offset=start)
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid(images, max(cell or CELL, recipe.phase.resolution), columns)).save(output)
    recipe.runtime.close()
    print(f"{len(images)} images of {recipe.phase.resolution}x{recipe.phase.resolution} in {output}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m trainkit_recipes.progressive_gan.sample",
        description="Draw images from a trained progressive GAN.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, help="a run directory, or one of its checkpoints/step_*")
    parser.add_argument("--num", type=int, default=64, help="images (default 64)")
    parser.add_argument(
        "--output", type=Path, default=Path("samples.png"), help="picture to write (default samples.png)"
    )
    parser.add_argument("--start", type=int, default=0, help="number of the first latent; others give other images")
    parser.add_argument("--cell", type=int, help="pixels of an image in the grid (default: as in training)")
    add_trust(parser)
    given = parser.parse_args(arguments)
    chosen = {"num": given.num, "output": given.output, "start": given.start, "cell": given.cell}
    return guarded(lambda: sample(given.path, **chosen, trust=given.trust), from_here=given.trust)


if __name__ == "__main__":
    sys.exit(main())
