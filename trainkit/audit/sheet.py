"""Sheet: pairs of pictures side by side, as one image file."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from trainkit.audit.pictures import SIDE
from trainkit.audit.report import Leak

MOST_PAIRS = 200
_COLUMNS, _GAP, _WHITE = 6, 4, 255


def write_sheet(leaks: Iterable[Leak], path: Path) -> int:
    """Writes a contact sheet: of each pair the training picture on the left, the held-out one on the right.

    Args:
        leaks: of any kind; those without pictures are left out.
        path: the PNG file.

    Returns:
        How many pairs it shows; 0: nothing was written.

    Raises:
        OSError: where it cannot be written.
    """
    from PIL import Image

    pairs = [(one.train_pixels, one.held_out_pixels) for one in leaks]
    shown = [(a, b) for a, b in pairs if a is not None and b is not None][:MOST_PAIRS]
    if not shown:
        return 0
    width, height = 2 * SIDE + 3 * _GAP, SIDE + 2 * _GAP
    columns = min(_COLUMNS, len(shown))
    sheet = np.full((-(-len(shown) // columns) * height, columns * width, 3), _WHITE, np.uint8)
    for number, pair in enumerate(shown):
        top, left = number // columns * height + _GAP, number % columns * width + _GAP
        for place, pixels in enumerate(pair):
            image = Image.fromarray(np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0).copy())
            at = left + place * (SIDE + 1)
            sheet[top : top + SIDE, at : at + SIDE] = np.asarray(image.resize((SIDE, SIDE)))
    Image.fromarray(sheet).save(path, "PNG")
    return len(shown)
