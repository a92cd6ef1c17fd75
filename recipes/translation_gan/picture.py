"""Picture: an image file of any size, translated."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from trainkit.errors import DataError
from trainkit_recipes.progressive_gan.pictures import as_pixels

if TYPE_CHECKING:
    from PIL import Image


@torch.no_grad()
def translated(module: nn.Module, path: Path, size: int | None, channels: int, dtype: torch.dtype) -> "Image.Image":
    """Translates one image.

    Args:
        module: the generator.
        path: of the image, in any format that Pillow reads.
        size: pixels of a side: it is cropped and scaled to that; None: it keeps its shape and size.
        channels: 1 or 3, of the generator.
        dtype: of the generator.

    Returns:
        The translated image.

    Raises:
        DataError: where it cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    except OSError as error:
        raise DataError(f"{path} cannot be read as an image ({error}); repair or remove it") from error
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(image).reshape(image.height, image.width, channels).copy())
    given = pixels.permute(2, 0, 1)[None].to(next(module.parameters()).device, dtype) / 127.5 - 1.0
    rounded = as_pixels(in_multiples(module, given))[0]
    return Image.fromarray(rounded[..., 0] if channels == 1 else rounded)


def in_multiples(module: nn.Module, images_BCHW: Tensor, step: int = 4, least: int = 8) -> Tensor:
    """Calls a generator with images of any size: they are extended by their edge pixels, and cropped again.

    Args:
        module: takes heights and widths that are multiples of `step`, from `least` on.
        images_BCHW: of any height and width.
        step: see `module`.
        least: see `module`.

    Returns:
        [B, C, H, W].
    """
    height, width = images_BCHW.shape[2:]
    down, right = (max(least, -(-side // step) * step) - side for side in (height, width))
    extended = nn.functional.pad(images_BCHW, (0, right, 0, down), mode="replicate")
    made: Tensor = module(extended)
    return made[:, :, :height, :width]
