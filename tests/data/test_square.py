"""Pictures of every mode and shape become square bytes."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.data.test_images import encoded
from trainkit.data.square import square


def colour(image: Image.Image, channels: int = 3) -> list[int]:
    """The one colour that all pixels have after decoding."""
    pixels = square(Image.open(io.BytesIO(encoded(image, "TIFF" if image.mode == "CMYK" else "PNG"))), 4, channels)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (channels, 4, 4)
    assert (pixels == pixels[:, :1, :1]).all()
    return pixels[:, 0, 0].tolist()


def test_every_mode_becomes_bytes_of_the_channels_asked():
    palette = Image.new("RGB", (8, 8), (10, 200, 30)).quantize(2)
    assert palette.mode == "P"
    assert colour(palette) == [10, 200, 30]
    assert colour(Image.new("L", (8, 8), 77)) == [77, 77, 77]
    assert colour(Image.new("L", (8, 8), 77), channels=1) == [77]
    assert colour(Image.new("1", (8, 8), 1)) == [255, 255, 255]
    assert colour(Image.new("RGB", (8, 8), (255, 0, 0)), channels=1) == [76]  # ITU-R 601 luma
    assert colour(Image.new("CMYK", (8, 8), (0, 255, 255, 0))) == [255, 0, 0]


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (256, 1), (32896, 128), (65535, 255)])
def test_sixteen_bits_are_scaled_and_not_cut_off(value, expected):
    assert colour(Image.fromarray(np.full((8, 8), value, np.uint16)), channels=1) == [expected]


@pytest.mark.parametrize("image", [Image.new("F", (8, 8), 0.5), Image.new("I", (8, 8), 70000)], ids=["float", "32 bit"])
def test_values_of_unknown_range_are_refused(image):
    with pytest.raises(ValueError, match="its pixels are"):
        square(image, 4, 1)


def test_what_is_transparent_shows_white():
    assert colour(Image.new("RGBA", (8, 8), (0, 0, 0, 0))) == [255, 255, 255]
    assert colour(Image.new("RGBA", (8, 8), (255, 0, 0, 255))) == [255, 0, 0]
    assert colour(Image.new("LA", (8, 8), (0, 0)), channels=1) == [255]
    half = colour(Image.new("RGBA", (8, 8), (0, 0, 0, 128)))
    assert half == [127, 127, 127]
    palette = io.BytesIO()
    Image.new("P", (8, 8), 0).save(palette, "PNG", transparency=0)
    assert (square(Image.open(palette), 4, 3) == 255).all()


def raw_png(bits: int, kind: int, row: bytes, transparent: bytes) -> Image.Image:
    """One row of a PNG, with a colour that is transparent; kind: 0 grey, 2 RGB."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width = 8 * len(row) // (bits * (3 if kind == 2 else 1))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)) + chunk(b"tRNS", transparent)
    whole = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return Image.open(io.BytesIO(whole))


@pytest.mark.parametrize(
    ("bits", "kind", "row", "transparent"),
    [
        (1, 0, b"\x00", b"\0\0"),
        (2, 0, b"\x55", b"\0\1"),
        (4, 0, b"\x77", b"\0\7"),
        (8, 0, b"\x37", b"\0\x37"),
        (16, 0, b"\x12\x34", b"\x12\x34"),
        (8, 2, b"\x01\x02\x03", b"\0\1\0\2\0\3"),
        (16, 2, b"\x12\x34\x56\x78\x9a\xbc", b"\x12\x34\x56\x78\x9a\xbc"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_shows_white_at_every_depth(bits, kind, row, transparent, channels):
    assert (square(raw_png(bits, kind, row, transparent), 4, channels) == 255).all()
    other = bytes(byte ^ 0x10 for byte in transparent) if bits > 4 else transparent[:-1] + bytes([transparent[-1] ^ 2])
    if bits > 1:
        assert (square(raw_png(bits, kind, row, other), 4, channels) < 200).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = np.zeros((8, 8), np.uint8)
    upright[:4, :4], upright[:4, 4:], upright[4:, :4] = 250, 170, 90
    # What a camera stores, for each orientation, so that it shows upright.
    undo = [None, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, np.transpose]
    undo += [np.rot90, lambda a: np.rot90(a, 2).T, lambda a: np.rot90(a, -1)]
    stored = upright if orientation == 1 else undo[orientation - 1](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = Image.open(io.BytesIO(encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)))
    assert np.array_equal(square(decoded, 8, 1)[0], upright)


@pytest.mark.parametrize("size", [(30, 10), (10, 30)])
def test_the_middle_square_is_kept(size):
    width, height = size
    pixels = np.zeros((height, width), np.uint8)
    pixels[(height - 10) // 2 : (height + 10) // 2, (width - 10) // 2 : (width + 10) // 2] = 200
    assert (square(Image.fromarray(pixels), 4, 1) == 200).all()
