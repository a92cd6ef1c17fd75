"""Converts any picture to a square of bytes."""

import io
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainkit.data.smart_crop import smart_offset

if TYPE_CHECKING:
    from PIL import Image

Fit = Literal["crop", "smart", "pad", "stretch"]


class Plain(NamedTuple):
    """An upright, opaque image of 8-bit grey or sRGB.

    Args:
        image: of Pillow.
        is_profile_ignored: whether the file has a colour profile that does not fit its pixels.
    """

    image: "Image.Image"
    is_profile_ignored: bool


def plain(image: "Image.Image", channels: int, background: str = "white") -> Plain:
    """Converts an image, and keeps its shape and size.

    It is rotated by its EXIF orientation, converted to sRGB by its colour profile if that is of CMYK or of another RGB,
    and blended with the background where it is transparent.

    Args:
        image: a Pillow image.
        channels: 1 (grey) or 3 (RGB).
        background: a colour that Pillow knows: a name, or "#rrggbb".

    Returns:
        The image, of mode L or RGB.

    Raises:
        ValueError: for pixels of unknown range. Pillow raises others for a file that it cannot decode.
    """
    from PIL import ImageOps

    _scale_transparent_colour(image)
    ImageOps.exif_transpose(image, in_place=True)
    converted, is_ignored = _in_srgb(image)
    opaque = _opaque(_eight_bits(converted), background)
    return Plain(opaque.convert("L" if channels == 1 else "RGB"), is_ignored)


def square(
    image: "Image.Image", resolution: int, channels: int, fit: Fit = "crop", background: str = "white"
) -> NDArray[np.uint8]:
    """Fits, scales and converts an image: that of `plain` is scaled down by averaging areas, or up bicubically.

    Args:
        image: a Pillow image.
        resolution: pixels of a side.
        channels: 1 (grey) or 3 (RGB).
        fit: `crop`: the central square; `smart`: the square with most detail, see `smart_offset`; `pad`: all of it, on
            the background; `stretch`: all of it, distorted.
        background: a colour that Pillow knows: a name, or "#rrggbb".

    Returns:
        uint8 [channels, resolution, resolution].

    Raises:
        ValueError: for pixels of unknown range. Pillow raises others for a file that it cannot decode.
    """
    reduce_jpeg(image, resolution)
    return fitted(plain(image, channels, background).image, resolution, fit, background)


def reduce_jpeg(image: "Image.Image", resolution: int) -> None:
    """Has a JPEG several times too large decoded at a fraction of its size, with a margin for averaging."""
    image.draft(None, (2 * resolution, 2 * resolution))


def fitted(image: "Image.Image", resolution: int, fit: Fit, background: str) -> NDArray[np.uint8]:
    """Fits and scales what `plain` has returned; see `square`."""
    return channels_first(_fitted(image, resolution, fit, background))


def channels_first(image: "Image.Image") -> NDArray[np.uint8]:
    """Returns the pixels of an image of mode L or RGB, uint8 [C, H, W]."""
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    return pixels.transpose(2, 0, 1).copy(order="C")  # Pillow's are read-only


def is_upscaled(size: tuple[int, int], resolution: int, fit: Fit = "crop") -> bool:
    """Returns whether `square` has to invent detail for an image of that size.

    Example:
        >>> is_upscaled((100, 30), 64), is_upscaled((100, 30), 64, fit="pad")
        (True, False)
    """
    return (max(size) if fit == "pad" else min(size)) < resolution


def _fitted(image: "Image.Image", resolution: int, fit: Fit, background: str) -> "Image.Image":
    from PIL import Image

    width, height = image.size
    is_larger = not is_upscaled(image.size, resolution, fit)
    method = Image.Resampling.BOX if is_larger else Image.Resampling.BICUBIC
    if fit == "stretch":
        return image.resize((resolution, resolution), method)
    if fit == "pad":
        size = (
            max(1, round(width * resolution / max(image.size))),
            max(1, round(height * resolution / max(image.size))),
        )
        padded = Image.new(image.mode, (resolution, resolution), background)
        padded.paste(image.resize(size, method), ((resolution - size[0]) // 2, (resolution - size[1]) // 2))
        return padded
    side = min(image.size)
    left, top = (width - side) // 2, (height - side) // 2
    if fit == "smart":
        left, top = smart_offset(image)
    return image.resize((resolution, resolution), method, box=(left, top, left + side, top + side))


def _in_srgb(image: "Image.Image") -> tuple["Image.Image", bool]:
    """Converts CMYK and RGB by their profile, and says whether that is ignored, as browsers do, as it does not fit."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("CMYK", "RGB", "RGBA", "P", "PA"):
        return image, False
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode != "CMYK" and "srgb" in ImageCms.getProfileDescription(given).lower():
            return image, False
        # A transparent colour or palette entry is one before the conversion.
        mode = "RGBA" if image.has_transparency_data else "RGB"
        source = image if image.mode == "CMYK" else image.convert(mode)
        converted = ImageCms.profileToProfile(source, given, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return image, True
    assert converted is not None, "it is not in place"
    return converted, False


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


def _opaque(image: "Image.Image", background: str) -> "Image.Image":
    from PIL import Image

    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image)


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
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if not isinstance(transparent, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))
