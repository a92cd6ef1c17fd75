"""Draws from a trained generator: `python -m trainkit_recipes.progressive_gan.sample RUN --num 64`."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli import add_trust, guarded
from trainkit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from trainkit_recipes.progressive_gan.latents import Sampler
    from trainkit_recipes.progressive_gan.train import ProgressiveGAN

EXAMPLES = """\
examples:
  python -m trainkit_recipes.progressive_gan.sample runs/glyphs --num 64 --output letters.png
  python -m trainkit_recipes.progressive_gan.sample runs/glyphs --start 64 --cell 128
  python -m trainkit_recipes.progressive_gan.sample RUN --classes cat,dog --truncation 0.7
  python -m trainkit_recipes.progressive_gan.sample RUN --folder generated --num 10000
  python -m trainkit_recipes.progressive_gan.sample RUN --video walk.mp4 --seconds 20
  python -m trainkit_recipes.progressive_gan.sample RUN --mix 16 --output mixed.png
  python -m trainkit_recipes.progressive_gan.sample RUN --project photo.jpg --output found.png
  python -m trainkit_recipes.progressive_gan.sample RUN --page generator.html
"""


@contextmanager
def trained(path: Path, trust: bool = False) -> Iterator[tuple["ProgressiveGAN", "Sampler"]]:
    """Context manager for a run's recipe, and a sampler of its averaged generator.

    Args:
        path: a run directory or a checkpoint.
        trust: whether code of the checkpoint's own may run.

    Raises:
        CheckpointError: for a run of another recipe.
    """
    from trainkit import load_recipe

    recipe = load_recipe(path, with_data=False, trust=trust)  # first: it says what to type without trainkit_recipes
    from trainkit_recipes.progressive_gan.train import ProgressiveGAN

    try:
        if not isinstance(recipe, ProgressiveGAN):
            raise CheckpointError(f"{path} holds a {type(recipe).__name__}, not a progressive GAN")
        with recipe.G.averaged() as module:
            yield recipe, recipe.sampler(module)
    finally:
        recipe.runtime.close()


def sample(
    path: Path,
    *,
    num: int = 64,
    output: Path = Path("samples.png"),
    start: int = 0,
    cell: int | None = None,
    classes: str | None = None,
    truncation: float = 1.0,
    trust: bool = False,
) -> None:
    """Writes a grid of images from the averaged generator of a run; with classes, each row has one.

    Args:
        path: a run directory or a checkpoint.
        num: number of images.
        output: the picture to write; its suffix is the format.
        start: number of the first latent.
        cell: pixels of an image in the grid; None: as in training.
        classes: the shown ones, separated by commas; None: all.
        truncation: see `feature_maps.Truncated`.
        trust: whether code of the checkpoint's own may run.

    Raises:
        ConfigError: for numbers out of range, and an unknown picture format.
        CheckpointError: for a run of another recipe.
    """
    _require_numbers(num, start)
    _require_picture(output)
    with trained(path, trust) as (recipe, plain):
        sampler = _truncated(plain, truncation)
        images, columns = sampler.shown(num, offset=start, of_classes=_labels(classes, recipe))
        _save_grid(images, output, cell, columns)
        size = recipe.phase.resolution
    print(f"{len(images)} images of {size}x{size} in {output}")


def draw_grid(given: argparse.Namespace) -> None:
    """Writes a grid."""
    chosen = {name: getattr(given, name) for name in ("output", "start", "cell", "classes", "truncation", "trust")}
    sample(given.path, num=_num(given, 64), **chosen)


def draw_folder(given: argparse.Namespace) -> None:
    """Writes a folder of single pictures."""
    from trainkit_recipes.progressive_gan.folder import write_folder

    num = _num(given, 1000)
    _require_numbers(num, given.start)
    with trained(given.path, given.trust) as (recipe, plain):
        names, labels = recipe.datasets.classes, _labels(given.classes, recipe)
        sampler = _truncated(plain, given.truncation)
        report = _progress("pictures")
        write_folder(sampler, given.folder, num, start=given.start, classes=names, labels=labels, report=report)
    beside = ", dataset.json with their classes" if names else ""
    print(f"{num:,} pictures in {given.folder}{beside}; to train on them: data.path={given.folder}")


def draw_video(given: argparse.Namespace) -> None:
    """Writes a video of a walk through latents, of several images at once."""
    from trainkit_recipes.progressive_gan.latents import closed_path
    from trainkit_recipes.progressive_gan.pictures import grid
    from trainkit_recipes.progressive_gan.video import require_format, write_video

    num = _num(given, 9)
    _require_numbers(num, given.start)
    require_format(given.video)
    if not given.seconds > 0 or not 1 <= given.fps <= 120:
        raise ConfigError(f"--seconds {given.seconds} --fps {given.fps}: must be above 0 s, and 1 .. 120")
    with trained(given.path, given.trust) as (recipe, plain):
        sampler, labels = _truncated(plain, given.truncation), _labels(given.classes, recipe)
        if labels is None and recipe.datasets.classes:
            labels = [*range(len(recipe.datasets.classes))]
        of_tiles = None if labels is None else [labels[number * len(labels) // num] for number in range(num)]
        num_frames, num_anchors = max(1, round(given.seconds * given.fps)), max(2, round(given.seconds / 2))
        firsts = range(given.start, given.start + num * num_anchors, num_anchors)
        paths = [closed_path(sampler.latents(range(first, first + num_anchors)), num_frames) for first in firsts]
        cell = given.cell or max(64, 512 // round(num**0.5), recipe.phase.resolution)
        frames = (
            grid(sampler.images(_stacked(paths, frame), of_tiles), cell)
            for frame in _progress("frames")(range(num_frames))
        )
        write_video(frames, given.video, given.fps)
    print(f"{num_frames} frames, {given.seconds:g} s without a seam, in {given.video}")


def draw_mixed(given: argparse.Namespace) -> None:
    """Writes a table: the layout of its first column with the style of its first row."""
    import torch

    from trainkit_recipes.progressive_gan.feature_maps import with_style

    num = _num(given, 6)
    _require_numbers(num, given.start)
    _require_picture(given.output)
    with trained(given.path, given.trust) as (recipe, plain):
        sampler, labels = _truncated(plain, given.truncation), _labels(given.classes, recipe)
        if labels is None and recipe.datasets.classes:
            labels = [*range(len(recipe.datasets.classes))]
        of = None if labels is None else [labels[number % len(labels)] for number in range(num)]
        latents = sampler.latents(range(given.start, given.start + num))
        own = sampler.images(latents, of)
        rows = [torch.cat([torch.ones_like(own[:1]), own])]
        for row in range(num):
            both = None if of is None else ([of[row]] * num, of)
            mixed = with_style(sampler, latents[[row] * num], latents, given.mix, both)
            rows.append(torch.cat([own[[row]], mixed]))
        _save_grid(torch.cat(rows), given.output, given.cell, num + 1)
    print(f"rows: layout, columns: style from {given.mix}x{given.mix} on, in {given.output}")


def draw_projection(given: argparse.Namespace) -> None:
    """Writes a picture beside the nearest generated one, and its latent."""
    import numpy as np
    import torch

    from trainkit_recipes.progressive_gan.projection import project, read_picture

    _require_picture(given.output)
    with trained(given.path, given.trust) as (recipe, sampler):
        labels = _labels(given.classes, recipe)
        if labels is not None and len(labels) != 1:
            raise ConfigError(f"--classes {given.classes}: a picture has one class; leave it out to try all")
        size, channels = recipe.phase.resolution, recipe.widths.channels
        picture = read_picture(given.project, size, channels, **_settings_of(given.path))
        label = None if labels is None else labels[0]
        found = project(sampler, picture, label=label, report=_progress("steps"))
        both = torch.stack([picture.to(found.image_CHW), found.image_CHW])
        _save_grid(both, given.output, given.cell or 256, 2)
        latent = given.output.with_suffix(".npy")
        np.save(latent, found.latent_Z.float().cpu().numpy())
        of_class = "" if found.label is None else f", class {recipe.datasets.classes[found.label]}"
    print(
        f"nearest image{of_class}: {found.distance:.4f} away (root mean square of pixels of 0 .. 1, PSNR "
        f"{found.psnr:.1f} dB); other starts ended at {', '.join(f'{d:.4f}' for d in found.distances[1:4])}\n"
        f"picture and image in {given.output}, the latent in {latent}"
    )


def draw_page(given: argparse.Namespace) -> None:
    """Writes the interactive page."""
    from trainkit_recipes.progressive_gan.page import Shown, page

    _require_numbers(1, given.start)
    with trained(given.path, given.trust) as (recipe, sampler):
        classes = recipe.datasets.classes
        labels = _labels(given.classes, recipe) or [*range(len(classes))]
        size = f"{recipe.phase.resolution}x{recipe.phase.resolution}"
        facts = f"{size} pixels, step {recipe.runtime.step:,}" + (f", {len(classes)} classes" if classes else "")
        shown = Shown(f"Progressive GAN: {given.path.resolve().name}", facts, classes, tuple(labels))
        text = page(sampler, shown, start=given.start, report=_progress("walks"))
    given.page.parent.mkdir(parents=True, exist_ok=True)
    given.page.write_text(text, encoding="utf-8")
    print(f"{given.page}, {len(text) / 1e6:.1f} MB: open it in a browser; it needs no network")


# By option: what draws, and the further options that change it.
_DRAWS = {
    "": draw_grid,
    "folder": draw_folder,
    "video": draw_video,
    "mix": draw_mixed,
    "project": draw_projection,
    "page": draw_page,
}
_OF_USE = {
    "": ("num", "output", "start", "cell", "classes", "truncation"),
    "folder": ("num", "start", "classes", "truncation"),
    "video": ("num", "start", "cell", "classes", "truncation", "seconds", "fps"),
    "mix": ("num", "output", "start", "cell", "classes", "truncation"),
    "project": ("output", "cell", "classes"),
    "page": ("start", "classes"),
}
_DEFAULTS = {"output": Path("samples.png"), "start": 0, "truncation": 1.0, "seconds": 12.0, "fps": 30}


def _require_of_use(given: argparse.Namespace, way: str) -> None:
    for name in (*_OF_USE["video"], "output"):
        if getattr(given, name) is not None and name not in _OF_USE[way]:
            drawn = f"--{way}" if way else "a grid"
            raise ConfigError(f"--{name} {getattr(given, name)}: changes nothing about {drawn}; leave it out")


def _with_defaults(given: argparse.Namespace) -> argparse.Namespace:
    values = {name: value for name, value in vars(given).items() if value is not None or name not in _DEFAULTS}
    return argparse.Namespace(**{**_DEFAULTS, **values})


def _num(given: argparse.Namespace, default: int) -> int:
    return default if given.num is None else given.num


def _settings_of(path: Path) -> dict[str, Any]:
    """How the run made images square and opaque; nothing where its data are no `Images`."""
    from trainkit.checkpoint import find, read_manifest

    data = (read_manifest(find(path.expanduser()))["values"].get("config") or {}).get("data") or {}
    return {key: data[key] for key in ("fit", "background") if key in data}


def _labels(given: str | None, recipe: "ProgressiveGAN") -> list[int] | None:
    from trainkit_recipes.progressive_gan.classes import labels_of_names

    return None if given is None else labels_of_names(given, recipe.datasets.classes)


def _truncated(sampler: "Sampler", psi: float) -> "Sampler":
    from trainkit_recipes.progressive_gan.feature_maps import truncated

    return truncated(sampler, psi)


def _stacked(paths: Sequence[Any], frame: int) -> Any:
    import torch

    return torch.stack([path[frame] for path in paths])


def _save_grid(images: Any, output: Path, cell: int | None, columns: int | None) -> None:
    from PIL import Image

    from trainkit_recipes.progressive_gan.pictures import CELL, grid

    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid(images, max(cell or CELL, images.shape[-1]), columns)).save(output)


def _require_numbers(num: int, start: int) -> None:
    if num < 1 or start < 0:
        raise ConfigError(f"--num {num} --start {start}: there must be 1 or more images, from 0 on")


def _require_picture(output: Path) -> None:
    from PIL import Image

    if output.suffix.lower() not in Image.registered_extensions():
        raise ConfigError(f"--output {output}: its suffix names no picture format; try {output.stem}.png")


def _progress(what: str) -> Callable[[Iterable[int]], Iterable[int]]:
    """What iterates with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    return lambda items: track(items, what, console=Console(stderr=True), transient=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainkit_recipes.progressive_gan.sample",
        description="Draw from a trained progressive GAN: a grid of images, or one of what is listed under 'instead'.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, help="a run directory, or one of its checkpoints/step_*")
    parser.add_argument(
        "--num", type=int, help="images (default 64; of a folder 1000, tiles of a video 9, rows of a table 6)"
    )
    parser.add_argument("--output", type=Path, help="picture to write (default samples.png)")
    parser.add_argument("--start", type=int, help="number of the first latent (default 0); others give other images")
    parser.add_argument("--cell", type=int, help="pixels of an image in the grid (default: as in training)")
    parser.add_argument("--classes", help="only these, by name or label, separated by commas")
    parser.add_argument(
        "--truncation",
        type=float,
        metavar="PSI",
        help="1: all variety; lower: more typical images, drawn towards the mean (default 1)",
    )
    group = parser.add_argument_group("instead of a grid")
    other = group.add_mutually_exclusive_group()
    other.add_argument("--folder", type=Path, help="write single PNGs there, with classes in folders and dataset.json")
    other.add_argument("--video", type=Path, help="write a walk between latents, as .mp4, .webm, .webp or .gif")
    other.add_argument(
        "--mix", type=int, metavar="RESOLUTION", help="a table: layouts with the styles of others from there on"
    )
    other.add_argument("--project", type=Path, metavar="PICTURE", help="find the latent of a picture")
    other.add_argument("--page", type=Path, metavar="HTML", help="write an interactive page")
    group.add_argument("--seconds", type=float, help="of a video (default 12)")
    group.add_argument("--fps", type=int, help="frames per second of a video (default 30)")
    add_trust(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    given = _parser().parse_args(arguments)
    way = next((name for name in ("folder", "video", "mix", "project", "page") if getattr(given, name) is not None), "")

    def draw() -> None:
        _require_of_use(given, way)
        _DRAWS[way](_with_defaults(given))

    return guarded(draw, from_here=given.trust)


if __name__ == "__main__":
    sys.exit(main())
