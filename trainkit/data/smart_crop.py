"""The square of an image with most detail.

Own code, because it needs no model and no further library: the libraries for it score thousands of windows in Python.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_SIDE = 64  # pixels of the shorter side at which detail is measured
_MOST = 4096  # pixels of the longer one


def smart_offset(image: "Image.Image") -> tuple[int, int]:
    """Chooses the square of an image's shorter side whose grey values differ most from their neighbours'.

    Args:
        image: a Pillow image.

    Returns:
        (left, top) in pixels. Of equal squares it is the one nearest to the centre.
    """
    width, height = image.size
    side, spare = min(image.size), abs(width - height)
    if not spare:
        return 0, 0
    scale = min(1.0, _SIDE / side)
    small = (max(1, min(_MOST, round(width * scale))), max(1, min(_MOST, round(height * scale))))
    grey = np.asarray(image.convert("L").resize(small)).astype(np.int64)
    grey = grey if width > height else grey.T  # the longer side is the second
    detail = np.abs(np.diff(grey, axis=0, prepend=grey[:1])).sum(0) + np.abs(np.diff(grey, prepend=grey[:, :1])).sum(0)
    window = max(1, round(len(detail) * side / max(image.size)))
    sums = np.concatenate([[0], np.cumsum(detail)])
    found = sums[window:] - sums[:-window]
    best = np.flatnonzero(found == found.max())
    chosen = best[np.argmin(np.abs(2 * best - (len(found) - 1)))]
    is_central = 2 * int(chosen) == len(found) - 1 or len(found) == 1
    offset = spare // 2 if is_central else round(int(chosen) * spare / (len(found) - 1))
    return (offset, 0) if width > height else (0, offset)
