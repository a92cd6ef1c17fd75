"""Pictures of translations: each row an image, its translation, and what that is when it is taken back."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from trainkit_recipes.progressive_gan.pictures import grid
from trainkit_recipes.translation_gan.evaluation import Side

_CELL = 64  # pixels of an image, unless it is larger
_BETWEEN = 12  # white pixels between both directions


def rows_of(first_NCHW: Tensor, second_NCHW: Tensor, generators: Mapping[Side, nn.Module]) -> np.ndarray:
    """Draws translations in both directions.

    Args:
        first_NCHW: images of the first side, of -1 .. 1.
        second_NCHW: as many of the second.
        generators: by the side that they translate to.

    Returns:
        uint8 [H, W, 3]: on the left three columns, the first side's images, translated to the second, and taken back;
        on the right the same for the second side's.
    """
    halves = []
    for images, forth, back in (
        (first_NCHW, generators["second"], generators["first"]),
        (second_NCHW, generators["first"], generators["second"]),
    ):
        translated = forth(images)
        halves.append(_columns(images, translated, back(translated)))
    gap = np.full((halves[0].shape[0], _BETWEEN, 3), 255, np.uint8)
    return np.concatenate((halves[0], gap, halves[1]), axis=1)


def _columns(*columns_NCHW: Tensor) -> np.ndarray:
    rows = torch.stack(columns_NCHW, dim=1)
    drawn = [grid(row, max(_CELL, row.shape[-1]), columns=len(row)) for row in rows]
    gap = np.full((2, drawn[0].shape[1], 3), 255, np.uint8)
    parts = [part for row in drawn for part in (row, gap)]
    return np.concatenate(parts[:-1])
