"""An interactive page of a trained generator: one HTML file with the images in it, which needs no network."""

import base64
import html
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trainkit_recipes.progressive_gan.feature_maps import mean_maps, truncated, with_style
from trainkit_recipes.progressive_gan.latents import Sampler, closed_path
from trainkit_recipes.progressive_gan.page_template import TEMPLATE
from trainkit_recipes.progressive_gan.pictures import as_pixels

LARGEST = 128  # pixels of an image in the page
PSIS = (1.0, 0.75, 0.5, 0.25)
NUM_ANCHORS, MOST_CLASSES, NUM_STYLES = 6, 12, 6
_MOST_STEPS = 12  # between two anchors
_BUDGET = 16_000_000  # pixels of all walks together

Report = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class Shown:
    """What a page says of its generator."""

    title: str
    facts: str
    classes: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()


def page(sampler: Sampler, shown: Shown, *, start: int = 0, report: Report = iter) -> str:
    """Makes the page: a walk between latents by truncation and class, and a table of styles by resolution.

    Args:
        sampler: of the generator.
        shown: what it says of it; of many classes MOST_CLASSES are shown.
        start: number of the first latent.
        report: iterates over the numbers of the walks, and may show progress.

    Returns:
        HTML.
    """
    labels = _spread(shown.labels, MOST_CLASSES) if shown.classes else [None]
    means = mean_maps(sampler)
    anchors = sampler.latents(range(start, start + NUM_ANCHORS))
    num_frames = NUM_ANCHORS * _steps(sampler, anchors, labels[0], len(labels) * len(PSIS))
    path = closed_path(anchors, num_frames)
    walks = []
    for number in report(range(len(labels) * len(PSIS))):
        label, psi = labels[number // len(PSIS)], PSIS[number % len(PSIS)]
        images = truncated(sampler, psi, means).images(path, None if label is None else [label] * num_frames)
        walks.append(_sheet(images))
    known = {
        "walks": walks,
        "classes": ["" if label is None else shown.classes[label] for label in labels],
        "psis": PSIS,
        "frames": num_frames,
        "anchors": NUM_ANCHORS,
        "styles": _styles(sampler, labels, start),
        "numStyles": NUM_STYLES,
    }
    # "</" would end the script.
    data = json.dumps(known).replace("</", "<\\/")
    filled = {"TITLE": html.escape(shown.title), "FACTS": html.escape(shown.facts), "DATA": data}
    text = TEMPLATE
    for name, value in filled.items():
        text = text.replace(f"@@{name}@@", value)
    return text


def _steps(sampler: Sampler, anchors: Tensor, label: int | None, num_walks: int) -> int:
    size = min(LARGEST, sampler.images(anchors[:1], None if label is None else [label]).shape[-1])
    return max(3, min(_MOST_STEPS, _BUDGET // (size**2 * num_walks * NUM_ANCHORS)))


def _styles(sampler: Sampler, labels: Sequence[int | None], start: int) -> dict[str, str]:
    """By resolution, a sheet of the images with the layout of the row and the style of the column."""
    latents = sampler.latents(range(start, start + NUM_STYLES))
    of = [labels[number % len(labels)] for number in range(NUM_STYLES)]
    rows, columns = (
        torch.arange(NUM_STYLES).repeat_interleave(NUM_STYLES),
        torch.arange(NUM_STYLES).repeat(NUM_STYLES),
    )
    chosen = None
    if of[0] is not None:
        chosen = tuple([int(of[int(number)] or 0) for number in side] for side in (rows, columns))
    sheets = {"own": _sheet(sampler.images(latents, None if chosen is None else chosen[1][:NUM_STYLES]))}
    for size in (int(name) for name, _ in sampler.module.get_submodule("blocks").named_children()):
        images = with_style(sampler, latents[rows], latents[columns], size, chosen)  # type: ignore[arg-type]
        sheets[str(size)] = _sheet(images)
    return sheets


def _spread(labels: Sequence[int], most: int) -> list[int | None]:
    num = min(len(labels), most)
    return [labels[number * len(labels) // num] for number in range(num)]


def _sheet(images_NCHW: Tensor) -> str:
    """The images in a nearly square sheet, as the URL of a WebP picture: its columns are the root of N, rounded up."""
    size = images_NCHW.shape[-1]
    if size > LARGEST:
        images_NCHW = F.avg_pool2d(images_NCHW, size // LARGEST)
    pixels = as_pixels(images_NCHW)
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, axis=-1)
    num, side = len(pixels), pixels.shape[1]
    columns = int(np.ceil(np.sqrt(num)))
    whole = np.zeros((columns * columns, side, side, 3), np.uint8)
    whole[:num] = pixels
    tiled = whole.reshape(columns, columns, side, side, 3).swapaxes(1, 2).reshape(columns * side, columns * side, 3)
    file = BytesIO()
    # Neighbours in a sheet of small images are not to bleed into each other.
    Image.fromarray(tiled).save(file, "WEBP", **({"lossless": True} if side <= 32 else {"quality": 90}))
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
