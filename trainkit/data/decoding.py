"""Decoder: one file to squares of bytes, or the reason why not."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from trainkit.data.image_sources import ImageSource
from trainkit.data.square import Fit, fitted, is_upscaled, plain, reduce_jpeg

if TYPE_CHECKING:
    from PIL import Image

Frames = Literal["first", "all"]
# Others have several images too, such as previews in a photo (MPO) or sizes of an icon (ICO).
_ANIMATED = frozenset({"AVIF", "GIF", "PNG", "TIFF", "WEBP"})
_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Unreadable:
    """A file that Pillow could not decode.

    Args:
        name: of the file.
        reason: the message of the decoder.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Decoded:
    """A file that was decoded.

    Args:
        name: of the file.
        frames: uint8 [C, R, R] each.
        size: (width, height) in pixels, upright.
        mode: of Pillow, such as RGBA.
        format: of Pillow, such as PNG.
        num_frames: that the file has.
        is_upscaled: whether it is smaller than R.
        is_profile_ignored: whether it has a colour profile that does not fit its pixels.
    """

    name: str
    frames: tuple[NDArray[np.uint8], ...]
    size: tuple[int, int]
    mode: str
    format: str
    num_frames: int
    is_upscaled: bool
    is_profile_ignored: bool


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Settings of decoding; see `Images` for each."""

    resolution: int
    channels: int = 3
    fit: Fit = "crop"
    background: str = "white"
    frames: Frames = "first"
    max_pixels: int
    max_file_mb: int

    def decode(self, source: ImageSource, name: str) -> Decoded | Unreadable:
        """Decodes one file of a source."""
        try:
            num_bytes = source.num_bytes(name)
            if num_bytes > self.max_file_mb * 1_000_000:
                return Unreadable(name, f"{num_bytes:,} bytes, and data.max_file_mb={self.max_file_mb}")
            with source.open(name) as image:
                return self._decode(image, name)
        except MemoryError:
            raise
        except Exception as error:  # a decoder may raise anything for a broken file
            return Unreadable(name, " ".join(str(error).split()) or type(error).__name__)

    def _decode(self, image: "Image.Image", name: str) -> Decoded | Unreadable:
        num_frames = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
        taken = num_frames if self.frames == "all" else 1
        if image.width * image.height * taken > self.max_pixels:
            each = f"{image.width} x {image.height} pixels" + (f" in each of {taken} frames" if taken > 1 else "")
            return Unreadable(name, f"{each}, and data.max_pixels={self.max_pixels}")
        size, mode, kind = image.size, image.mode, image.format or ""
        if image.getexif().get(_ORIENTATION) in _TURNED:
            size = (size[1], size[0])
        upscaled = is_upscaled(size, self.resolution, self.fit)
        if taken == 1:
            squares = [self._square(image)]
        else:
            # An APNG may have a still image for programs that do not animate.
            first = 1 if image.info.get("default_image") else 0
            squares = []
            for number in range(first, num_frames):
                image.seek(number)
                squares.append(self._square(image.copy()))
        frames, ignored = zip(*squares, strict=True)
        return Decoded(name, frames, size, mode, kind, num_frames, upscaled, any(ignored))

    def _square(self, image: "Image.Image") -> tuple[NDArray[np.uint8], bool]:
        reduce_jpeg(image, self.resolution)
        converted, is_profile_ignored = plain(image, self.channels, self.background)
        return fitted(converted, self.resolution, self.fit, self.background), is_profile_ignored
