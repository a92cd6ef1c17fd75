"""Converts any picture to a square of bytes."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image


def square(image: "Image.Image", resolution: int, channels: int) -> NDArray[np.uint8]:
    """Crops, scales and converts an image.

    It is rotated by its EXIF orientation, blended with white where it is transparent, cropped to the central square,
    and scaled down by averaging areas or up bicubically.

    Args:
        image: a Pillow image.
        resolution: pixels of a side.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        uint8 [channels, resolution, resolution].

    Raises:
        ValueError: for pixels of unknown range. Pillow raises others for a file that it cannot decode.
    """
    from PIL import Image, ImageOps

    _scale_transparent_colour(image)
    # A JPEG several times too large is decoded at a fraction of its size, with a margin for averaging.
    image.draft(None, (2 * resolution, 2 * resolution))
    ImageOps.exif_transpose(image, in_place=True)
    image = _opaque(_eight_bits(image)).convert("L" if channels == 1 else "RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    method = Image.Resampling.BOX if side >= resolution else Image.Resampling.BICUBIC
    scaled = image.resize((resolution, resolution), method, box=(left, top, left + side, top + side))
    pixels = np.asarray(scaled).reshape(resolution, resolution, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _scale_transparent_colour(image: "Image.Image") -> None:
    """Scales a PNG's transparent colour, which Pillow leaves with the file's number of bits, to decoded values.

    Of 16-bit colours Pillow decodes the high bytes alone, so only those are compared.
    """
    tiles = getattr(image, "tile", []) if image.format == "PNG" else []
    colour, rawmode = image.info.get("transparency"), tiles[0][3] if tiles else None
    if isinstance(colour, int) and rawmode in ("L;2", "L;4"):
        image.info["transparency"] = colour * (85 if rawmode == "L;2" else 17)
    elif isinstance(colour, tuple) and rawmode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _opaque(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _eight_bits(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    # Pillow would clip 16-bit values to 255.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"its pixels are {values.min()} .. {values.max()}, beyond 16 bits; save it with 8 or 16")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 0xFFFF
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
