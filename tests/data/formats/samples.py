"""The samples in tests/data/formats/written, which the peers themselves wrote: each a function of its number."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NUM = 12
BLOCK = 8
WORDS = ["once", "the", "grey", "fox", "ran", "over", "a", "hill", "and", "slept", "é", "below"]


def text(number: int) -> str:
    return " ".join(WORDS[: number % len(WORDS)]) + f" {number}"


def pixels(number: int) -> NDArray[np.uint8]:
    """[6, 5, 3], all different."""
    return (np.arange(90, dtype=np.int64) * (number + 3) % 251).astype(np.uint8).reshape(6, 5, 3)


def picture(number: int) -> Image.Image:
    return Image.fromarray(pixels(number))


def tokens(number: int) -> NDArray[np.int32]:
    return np.arange(number, number + 3 + number % 4, dtype=np.int32)


def mds(number: int) -> dict[str, Any]:
    """In the order of the names, which is that of the columns."""
    return {
        "blob": bytes(range(number)),
        "free": np.full((number % 3 + 1, 2), number / 4, np.float32),
        "long": np.arange(300, dtype=np.uint16) + number,
        "note": {"of": [number, None]},
        "number": number - 5,
        "pixels": picture(number),
        "png": picture(number + 1),
        "ratio": np.float32(number / 3),
        "text": text(number),
        "tokens": tokens(number),
    }


MDS_COLUMNS = {
    "blob": "bytes",
    "free": "ndarray",
    "long": "ndarray:uint16:300",
    "note": "json",
    "number": "int",
    "pixels": "pil",
    "png": "png",
    "ratio": "float32",
    "text": "str",
    "tokens": "ndarray:int32",
}


def small(number: int) -> dict[str, Any]:
    return {"label": number % 3, "text": text(number)}


def plain(number: int) -> dict[str, Any]:
    """Of which litdata makes no rows of Arrow, as it does where all values are text or numbers."""
    import torch

    return {"label": number % 3, "text": text(number), "vector": torch.arange(number)}


def litdata(number: int) -> dict[str, Any]:
    import torch

    return {
        "text": text(number),
        "label": number % 3,
        "vector": torch.arange(number),
        "matrix": np.full((2, 3), number, np.int16),
        "halves": torch.full((2, 2), number / 2, dtype=torch.float16),
        "picture": picture(number),
        "blob": bytes(range(number)),
        "both": (number, text(number)),
        "notes": [number, "a", None],
        "records": [{"k": number, "v": None}, {"k": 0, "v": "é"}],
    }


def rows(number: int) -> dict[str, str]:
    return {"text": text(number), "title": f"title {number}"}


def stream(number: int) -> Any:
    import torch

    return torch.arange(10 * number, 10 * number + 5 + number % 3, dtype=torch.int32)
