"""Leaves of litdata: what its serializers stand for, and the tree that a sample is."""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainkit.data.formats.litdata_json import decode_json
from trainkit.data.formats.mds_columns import Decode, picture, pixels
from trainkit.errors import DataError
from trainkit.json_text import parse_json

_TORCH_DTYPES = (
    *(torch.float32, torch.float32, torch.float64, torch.float64, torch.complex64, torch.complex64),
    *(torch.complex128, torch.complex128, torch.float16, torch.float16, torch.bfloat16, torch.uint8, torch.int8),
    *(torch.int16, torch.int16, torch.int32, torch.int32, torch.int64, torch.int64, torch.bool, torch.uint16),
)
_NUMPY_DTYPES = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"),
    *("complex64", "complex128", "bool"),
)
_FILES = ("file", "video", "audio", "nifti", "mesh", "pdf", "tiff", "tifffile")
_MOST_DEEP = 64


def image_tensor(content: bytes) -> Tensor:
    """Decodes the file of a picture to uint8 [3, H, W], upright."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(picture(content)).convert("RGB")
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy(order="C"))


def decoder_of(kind: str) -> Decode | None:
    """Returns what decodes a leaf of a kind; None for one that is not known, or holds pickles."""
    name, _, setting = kind.partition(":")
    if name in ("no_header_tensor", "no_header_numpy"):
        return _vector_decoder(name, setting)
    if name in _FILES:
        return bytes
    return _DECODERS.get(name)


def token_dtype(kind: str) -> Any:
    """Returns the dtype, of torch or NumPy, of a vector without a header.

    Raises:
        ValueError: for another kind.
    """
    name, _, number = kind.partition(":")
    known = {"no_header_tensor": _TORCH_DTYPES, "no_header_numpy": tuple(map(np.dtype, _NUMPY_DTYPES))}.get(name)
    if known is None or not number.isdecimal() or int(number) >= len(known):
        raise ValueError(f"{kind!r} is no vector of numbers")
    return known[int(number)]


def vector(content: bytes, dtype: Any) -> Any:
    """Returns the numbers in bytes, as a tensor or an array of their own."""
    if isinstance(dtype, torch.dtype):
        return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return np.frombuffer(content, dtype).copy()


def _vector_decoder(name: str, setting: str) -> Decode | None:
    try:
        dtype = token_dtype(f"{name}:{setting}")
    except ValueError:
        return None
    return lambda content: vector(content, dtype)


def _tensor(content: bytes) -> Tensor:
    number, num_dims = struct.unpack_from(">II", content)
    shape = struct.unpack_from(f">{num_dims}I", content, 8)
    values: Tensor = vector(content[8 + 4 * num_dims :], _TORCH_DTYPES[number])
    return values.reshape(shape)


def _array(content: bytes) -> NDArray[Any]:
    number, num_dims = struct.unpack_from("<II", content)
    shape = struct.unpack_from(f"<{num_dims}I", content, 8)
    return np.frombuffer(content, _NUMPY_DTYPES[number], offset=8 + 4 * num_dims).reshape(shape).copy()


def _images(content: bytes) -> list[Tensor]:
    (count,) = struct.unpack_from("<I", content)
    place, images = 4 + 4 * count, []
    for size in struct.unpack_from(f"<{count}I", content, 4):
        images.append(image_tensor(content[place : place + size]))
        place += size
    return images


_DECODERS: dict[str, Decode] = {
    "str": lambda content: content.decode(),
    "text": lambda content: content.decode(),
    "bool": lambda content: content[0] != 0,
    "int": lambda content: struct.unpack("<q", content)[0],
    "float": lambda content: struct.unpack("<d", content)[0],
    "bytes": bytes,
    "pil": pixels,
    "jpeg": image_tensor,
    "image": image_tensor,
    "jpeg_array": _images,
    "numpy": _array,
    "tensor": _tensor,
    "json": decode_json,
}


def require_readable(name: str, kind: str, others: list[str], shown: str) -> Decode:
    """Returns what decodes a leaf.

    Raises:
        DataError: for a pickle, which could run code, and for a kind that is not known.
    """
    decode = decoder_of(kind)
    if decode is None:
        why = "which is not known"
        if "pickle" in kind or kind.startswith("graph"):
            why = "which run code when they are read, and is never read"
        raise DataError(
            f"{shown}: column {name!r} holds {kind.partition(':')[0]} values, {why}; write it as numbers, tensors, "
            f"text or bytes, or give columns={others}"
        )
    return decode


class Tree:
    """The form of a sample: dicts, lists and tuples of leaves.

    Args:
        text: the data_spec of an index.json.
        shown: how the index is named to people.

    Raises:
        DataError: for one that is damaged, nested more than 64 times, or of other types.
    """

    def __init__(self, text: object, shown: str) -> None:
        try:
            if not isinstance(text, str):
                raise ValueError("none")
            protocol, self._spec = parse_json(text)
            if protocol != 1:
                raise ValueError(f"protocol {protocol}")
            self.names = [".".join(path) or "item" for path in _paths(self._spec, ())]
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{shown}: data_spec is not readable ({error}); write the data set again") from None

    def build(self, leaves: list[Any]) -> Any:
        """Returns the sample of its leaves."""
        return _built(self._spec, iter(leaves))


def _paths(spec: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if len(path) > _MOST_DEEP:
        raise ValueError("it is nested too deeply")
    kind, children = spec["type"], spec["children_spec"]
    if kind is None:
        yield path
        return
    if kind in ("builtins.dict", "collections.OrderedDict"):
        keys = parse_json(spec["context"])
        spec["keys"] = keys
        if not isinstance(keys, list) or len(keys) != len(children):
            raise ValueError(f"the keys {keys!r}")
    elif kind in ("builtins.list", "builtins.tuple"):
        keys = range(len(children))
    else:
        raise ValueError(f"samples of {kind}: dicts, lists and tuples are read")
    for key, child in zip(keys, children, strict=True):
        yield from _paths(child, (*path, str(key)))


def _built(spec: Any, leaves: Iterator[Any]) -> Any:
    kind = spec["type"]
    if kind is None:
        return next(leaves)
    values = [_built(child, leaves) for child in spec["children_spec"]]
    if "keys" in spec:
        return dict(zip(spec["keys"], values, strict=True))
    return tuple(values) if kind == "builtins.tuple" else values
