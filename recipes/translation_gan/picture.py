"""Picture: an image of any size, translated."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainkit_recipes.progressive_gan.pictures import as_pixels

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@torch.no_grad()
def translated(module: nn.Module, pixels_CHW: Pixels, dtype: torch.dtype) -> Pixels:
    """Translates one image.

    Args:
        module: the generator.
        pixels_CHW: uint8, of the generator's channels.
        dtype: of the generator.

    Returns:
        uint8 [H, W], or [H, W, 3]: the translated image, as Pillow takes it.
    """
    given = torch.from_numpy(pixels_CHW)[None].to(next(module.parameters()).device, dtype) / 127.5 - 1.0
    rounded: Pixels = as_pixels(in_multiples(module, given))[0]
    return rounded[..., 0] if rounded.shape[-1] == 1 else rounded


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
