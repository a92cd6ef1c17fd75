"""Grids of images, and animations of their change during training."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import GifImagePlugin, Image
from torch import Tensor

CELL = 64  # pixels of an image in a grid, unless its resolution is higher
GAP, WHITE = 2, 255  # pixels between images, and their colour
FRAME_MS, LAST_FRAME_MS = 120, 2000
MAX_PIXELS = 1024  # of a side of an animation


def as_pixels(images_BCHW: Tensor) -> np.ndarray:
    """Converts images of -1 .. 1 to uint8 [B, H, W, C]."""
    return ((images_BCHW.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def grid(images_BCHW: Tensor, cell: int, columns: int | None = None) -> np.ndarray:
    """Arranges images in a grid, separated by white lines of `GAP` pixels.

    Args:
        images_BCHW: of -1 .. 1, with 1 or 3 channels.
        cell: pixels of a cell; smaller images are enlarged by nearest neighbour.
        columns: of the grid; None: it is nearly square.

    Returns:
        uint8 [H, W, 3]; the first image is in the top left corner.
    """
    num, channels, size, _ = images_BCHW.shape
    pixels = as_pixels(images_BCHW)
    if channels == 1:
        pixels = pixels.repeat(3, axis=3)
    factor = max(1, cell // size)
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = columns or math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    side = pixels.shape[1] + GAP
    whole = np.full((rows * columns, side, side, 3), WHITE, np.uint8)
    whole[:num, :-GAP, :-GAP] = pixels
    tiled = whole.reshape(rows, columns, side, side, 3).swapaxes(1, 2).reshape(rows * side, columns * side, 3)
    return tiled[:-GAP, :-GAP]


def animate(frames: Sequence[Path], path: Path, crop: int | None = None, scale: int = 1) -> None:
    """Writes a GIF of picture files, with one picture in memory at a time.

    Args:
        frames: the files, in order; all get the size of the first, of at most MAX_PIXELS per side.
        path: the GIF to write.
        crop: pixels of the top left square that is shown; None: the whole picture.
        scale: enlargement of that square.
    """
    num, size = len(frames), None
    temporary = path.with_suffix(".tmp.gif")
    with temporary.open("wb") as file:
        for number, frame in enumerate(frames):
            with Image.open(frame) as opened:
                picture = opened.convert("RGB")
            if crop is not None:
                picture = picture.crop((0, 0, crop, crop)).resize(
                    (crop * scale, crop * scale), Image.Resampling.NEAREST
                )
            if size is None:
                shrink = max(1, -(-max(picture.size) // MAX_PIXELS))
                size = (picture.width // shrink, picture.height // shrink)
            if picture.size != size:
                picture = picture.resize(size, Image.Resampling.BOX)
            _write_frame(file, picture.quantize(256, dither=Image.Dither.NONE), number, is_last=number == num - 1)
        file.write(b";")
    temporary.replace(path)


def _write_frame(file: BinaryIO, picture: Image.Image, number: int, *, is_last: bool) -> None:
    if number == 0:
        for part in GifImagePlugin.getheader(picture, info={"loop": 0})[0]:
            file.write(part)
    for part in GifImagePlugin.getdata(
        picture, duration=LAST_FRAME_MS if is_last else FRAME_MS, include_color_table=number > 0
    ):
        file.write(part)
