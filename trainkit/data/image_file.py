"""Image files: single images, read as those of a data set are."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainkit.data.files import walk
from trainkit.data.image_suffixes import extensions
from trainkit.data.square import Fit, channels_first, plain, square
from trainkit.errors import DataError


def read_image(
    path: Path, *, channels: int = 3, resolution: int | None = None, fit: Fit = "crop", background: str = "white"
) -> NDArray[np.uint8]:
    """Reads an image as `Images` does: upright, in sRGB, of 8 bits and opaque.

    Args:
        path: of a file in any format that Pillow reads; of several frames the first.
        channels: 1 (grey) or 3 (RGB).
        resolution: pixels of a side of the square that it becomes; None: it keeps its shape and size.
        fit: how it becomes a square; see `Images`.
        background: the colour behind transparent and padded images.

    Returns:
        uint8 [channels, H, W].

    Raises:
        DataError: for a file that cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if resolution is None:
                return channels_first(plain(image, channels, background).image)
            return square(image, resolution, channels, fit, background)
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything for a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as an image ({reason}); repair or remove it") from error


def find_images(path: Path) -> list[Path]:
    """Finds image files by their suffix, without hidden ones.

    Args:
        path: a folder, searched recursively, or one image, whatever its suffix.

    Returns:
        The paths, sorted.

    Raises:
        DataError: where there is none.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; give a folder of images, or one image")
    if not path.is_dir():
        return [path]
    files = (directory / name for directory, _, names in walk(path) for name in names)
    found = sorted(file for file in files if file.suffix.lower() in extensions())
    if not found:
        raise DataError(f"{path} holds no image; give a folder of images, or one image")
    return found
