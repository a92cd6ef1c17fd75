"""Columns of MDS: what the encodings of mosaicml-streaming stand for."""

import io
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainkit.errors import DataError
from trainkit.json_text import parse_json

if TYPE_CHECKING:
    from PIL import Image

Decode = Callable[[bytes], Any]

_SCALARS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
_NUMBERED = {8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32"} | {
    34: "float32",
    64: "uint64",
    65: "int64",
    66: "float64",
}
# Bits of a pixel by Pillow's mode, in the bytes that `tobytes` gives.
_BITS = {"1": 1, "L": 8, "P": 8, "LA": 16, "La": 16, "PA": 16, "I;16": 16, "RGB": 24, "YCbCr": 24, "LAB": 24, "HSV": 24}
_BITS |= {"RGBA": 32, "RGBa": 32, "RGBX": 32, "CMYK": 32, "I": 32, "F": 32}


def picture(content: bytes) -> "Image.Image":
    """Opens the file of a picture, which is decoded when its pixels are read."""
    from PIL import Image

    return Image.open(io.BytesIO(content))


def pixels(content: bytes) -> "Image.Image":
    """Makes a picture of width, height and length of the mode, each uint32, the mode of Pillow, and its pixels.

    Raises:
        ValueError: where there are not as many pixels.
    """
    from PIL import Image

    width, height, length = np.frombuffer(content, "<u4", 3).tolist()
    mode = content[12 : 12 + min(length, 16)].decode()
    if mode not in _BITS:
        raise ValueError(f"pixels of mode {mode!r}")
    expected = (width * _BITS[mode] + 7) // 8 * height  # a line begins on a byte
    if len(content) - 12 - length != expected:
        raise ValueError(f"{width} x {height} pixels of {mode} are {expected} bytes, not {len(content) - 12 - length}")
    return Image.frombytes(mode, (width, height), content[12 + length :])


def decoder_of(encoding: str) -> Decode | None:
    """Returns what decodes a value of an encoding; None for one that is not known, or is a pickle."""
    name, _, settings = encoding.partition(":")
    if name == "ndarray":
        return _array_decoder(settings)
    if name in _SCALARS:
        dtype = np.dtype(name)
        return lambda content: _exactly(content, dtype)[0]
    return _DECODERS.get(encoding)


def _exactly(content: bytes, dtype: Any) -> NDArray[Any]:
    values = np.frombuffer(content, dtype)
    if len(values) != 1:
        raise ValueError(f"{len(content)} bytes")
    return values


def _array_decoder(settings: str) -> Decode | None:
    dtype, _, dims = settings.partition(":")
    if dtype and dtype not in _SCALARS:
        return None
    shape = tuple(int(dim) for dim in dims.split(",")) if dims else None

    def decode(content: bytes) -> NDArray[Any]:
        place, kind, sizes = 0, dtype, shape
        if not kind:
            kind, place = _NUMBERED[content[0]], 1
        if sizes is None:
            num_dims, size_dtype = content[place] >> 2, f"<u{1 << (content[place] & 3)}"
            sizes = tuple(np.frombuffer(content, size_dtype, num_dims, place + 1).tolist())
            place += 1 + num_dims * np.dtype(size_dtype).itemsize
        return np.frombuffer(content, kind, offset=place).reshape(sizes).copy()  # else read only, and torch warns

    return decode


def _list_decoder(decode: Decode, num_unused: int) -> Decode:
    def decode_all(content: bytes) -> list[Any]:
        count = int(np.frombuffer(content, "<u4", 1, num_unused)[0])
        first = num_unused + 4 + 4 * count
        sizes = np.frombuffer(content, "<u4", count, num_unused + 4).astype(np.int64)
        ends = (first + np.cumsum(sizes)).tolist()
        if ends and ends[-1] != len(content):
            raise ValueError(f"a list of {ends[-1]} bytes in {len(content)}")
        return [decode(content[start:stop]) for start, stop in zip([first, *ends], ends, strict=False)]

    return decode_all


_DECODERS: dict[str, Decode] = {
    "bytes": bytes,
    "str": lambda content: content.decode(),
    "int": lambda content: int(_exactly(content, np.int64)[0]),
    "str_int": lambda content: int(content.decode()),
    "str_float": lambda content: float(content.decode()),
    "str_decimal": lambda content: Decimal(content.decode()),
    "json": parse_json,
    "pil": pixels,
    "jpeg": picture,
    "png": picture,
    "list[pil]": _list_decoder(pixels, 4),
    "list[jpeg]": _list_decoder(picture, 4),
    "list[png]": _list_decoder(picture, 4),
    "jpeg_array": _list_decoder(picture, 0),
    "jpegarray": _list_decoder(picture, 0),
}


def require_readable(name: str, encoding: str, others: list[str], shown: str) -> Decode:
    """Returns what decodes a column.

    Raises:
        DataError: for a pickle, which could run code, and for an encoding that is not known.
    """
    if encoding == "pkl":
        raise DataError(
            f"{shown}: column {name!r} holds pickles, which run code when they are read, and is never read; write it "
            f"as json, ndarray or bytes, or give columns={others}"
        )
    try:
        decode = decoder_of(encoding)
    except ValueError:  # a shape that is no numbers
        decode = None
    if decode is None:
        known = sorted([*_DECODERS, *_SCALARS, "ndarray"])
        raise DataError(
            f"{shown}: column {name!r} has the encoding {encoding!r}, which is not known; known are {', '.join(known)}"
            f"; give columns={others}"
        )
    return decode
