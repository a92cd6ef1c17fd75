"""Glyphs: the built-in images, letters and digits of matplotlib's DejaVu fonts, so nothing is downloaded."""

import hashlib
import string
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainkit.data.file_look import Verify
from trainkit.errors import DataError

if TYPE_CHECKING:
    from PIL import Image, ImageFont

Style = Literal["filled", "outlined"]

_CHARACTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
_SCALES = (0.78, 0.82, 0.86, 0.90)  # the longer side of a glyph as a fraction of the canvas
_MIN_CANVAS = 128  # pixels: glyphs are drawn large and averaged down
_LINES = 21  # an outline is as wide as this fraction of the canvas; twice that is free around the largest glyph
_NOT_A_CHARACTER = "\U0010fffe"


class Glyphs:
    """62 letters and digits of 12 fonts in 4 sizes, white on black: 2,976 images.

    Args:
        resolution: pixels; the images are drawn at least that large.
        style: `outlined` ones are drawn as the lines around them.
    """

    def __init__(self, resolution: int, style: Style = "filled") -> None:
        self._canvas, self._style = max(_MIN_CANVAS, resolution), style

    def names(self) -> Sequence[str]:
        """Returns the names of all images, as `open` takes them."""
        return [
            f"{face}/{character}/{scale}"
            for face, font in self._fonts.items()
            for character in _drawable(font)
            for scale in _SCALES
        ]

    def fingerprint(self, memory: Path, progress: bool = False) -> str:
        """Hashes the fonts and how they are drawn."""
        digest = hashlib.blake2b(repr((_CHARACTERS, _SCALES, self._canvas)).encode(), digest_size=16)
        if self._style != "filled":
            digest.update(self._style.encode())
        for path in _font_files():
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def num_bytes(self, name: str) -> int:
        """Returns 0: there is no file."""
        return 0

    def look(self, memory: Path, verify: Verify, progress: bool) -> None:
        """Does nothing: there are no files that change."""

    def remembered(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns what is computed."""
        return compute()

    def not_read(self) -> Mapping[str, int]:
        """Returns nothing: there are no other files."""
        return {}

    def open(self, name: str) -> "Image.Image":
        """Draws the image of that name."""
        from PIL import Image

        face, character, fraction = name.split("/")
        font, canvas = self._fonts[face], self._canvas
        glyph = _ink(font, character)
        scale = float(fraction) * canvas / max(glyph.size)
        glyph = glyph.resize((max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale))))
        image = Image.new("L", (canvas, canvas))
        image.paste(glyph, ((canvas - glyph.width) // 2, (canvas - glyph.height) // 2))
        return image if self._style == "filled" else _outlined(image)

    def read(self, name: str) -> bytes | None:
        """Returns None: there are no other files."""
        return None

    def class_of(self, name: str) -> str | None:
        """Returns the character."""
        return name.split("/")[1]

    @cached_property
    def _fonts(self) -> dict[str, "ImageFont.FreeTypeFont"]:
        from PIL import ImageFont

        return {path.stem: ImageFont.truetype(str(path), self._canvas) for path in _font_files()}


def _outlined(image: "Image.Image") -> "Image.Image":
    from PIL import ImageChops, ImageFilter

    width = image.width // _LINES
    return ImageChops.subtract(image.filter(ImageFilter.MaxFilter(2 * width + 1)), image)


@cache
def _font_files() -> list[Path]:
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    files = sorted(folder.glob("DejaVu*.ttf"))
    if not files:
        raise DataError(
            f"data.path=null draws letters from fonts, and {folder} has no DejaVu*.ttf; "
            f"set data.path to a folder or zip file of images, or install matplotlib from its wheel"
        )
    return files


def _drawable(font: "ImageFont.FreeTypeFont") -> list[str]:
    """Returns the characters that the font has, which are not drawn as its box for missing ones."""
    box = _ink(font, _NOT_A_CHARACTER)
    return [character for character in _CHARACTERS if _ink(font, character) != box]


def _ink(font: "ImageFont.FreeTypeFont", character: str) -> "Image.Image":
    from PIL import Image, ImageDraw

    left, top, right, bottom = (int(edge) for edge in font.getbbox(character))
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), character, fill=255, font=font)
    return image.crop(image.getbbox())  # the font's own box includes the space between letters
