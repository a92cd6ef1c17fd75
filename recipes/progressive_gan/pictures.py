"""Grids of images, and animations of how they changed."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

GAP, WHITE = 2, 255  # pixels between images, and their colour
FRAME_MS, LAST_FRAME_MS = 120, 2000


def grid(images_BCHW: Tensor, cell: int) -> np.ndarray:
    """uint8 [H, W, 3]: images of -1 .. 1 in a nearly square grid of cells of `cell` pixels, nearest neighbour.

    White lines of `GAP` pixels part the cells, of which the first begins in the top left corner.
    """
    num, channels, size, _ = images_BCHW.shape
    pixels = ((images_BCHW.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    if channels == 1:
        pixels = pixels.repeat(3, axis=3)
    factor = max(1, cell // size)
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    side = pixels.shape[1] + GAP
    whole = np.full((rows * columns, side, side, 3), WHITE, np.uint8)
    whole[:num, :-GAP, :-GAP] = pixels
    parted = whole.reshape(rows, columns, side, side, 3).swapaxes(1, 2).reshape(rows * side, columns * side, 3)
    return parted[:-GAP, :-GAP]


def animate(frames: Sequence[Path], path: Path, crop: int | None = None, scale: int = 1) -> None:
    """A GIF of picture files in their order; `crop`: of their top left so many pixels, `scale` times as large."""
    pictures = []
    for frame in frames:
        with Image.open(frame) as picture:
            square = picture.convert("RGB")
        if crop is not None:
            square = square.crop((0, 0, crop, crop)).resize((crop * scale, crop * scale), Image.Resampling.NEAREST)
        pictures.append(square)
    durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_FRAME_MS]
    temporary = path.with_suffix(".tmp.gif")
    pictures[0].save(temporary, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    temporary.replace(path)
