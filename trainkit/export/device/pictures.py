"""Task: a picture of each line's seed. A tab divides a seed from the name of a class."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any, Callable

import numpy as np


class Task:
    """A generator of pictures, which are written as SEED.png to the working directory.

    Args:
        bundle: with the files.
    """

    def __init__(self, bundle: Any) -> None:
        self.latent_dim, self.labels = bundle.facts["latent_dim"], json.loads(bundle.text("labels.json"))

    def answer(self, line: str, run: Callable[..., Any]) -> dict[str, Any]:
        """Writes the picture of a line; returns what is printed for it. `run` is that of an InferenceSession."""
        seed, _, label = line.partition("\t")
        if not seed.isdecimal():
            return {"seed": seed, "error": "a seed must be a whole number"}
        inputs = {"latents": np.random.RandomState(int(seed) % 2**32).randn(1, self.latent_dim).astype(np.float32)}
        if self.labels:
            if label not in self.labels:
                return {"seed": seed, "error": "write a tab and one of " + ", ".join(self.labels) + " after the seed"}
            inputs["labels"] = np.array([self.labels.index(label)])
        path = Path(f"{seed}_{self.labels.index(label)}.png" if self.labels else f"{seed}.png")
        path.write_bytes(png(run(None, inputs)[0][0]))
        return {"seed": seed, **({"class": label} if self.labels else {}), "file": str(path)}


def png(pixels: Any) -> bytes:
    """Returns a PNG of pixels [1 or 3, height, width] of -1 .. 1."""
    pixels = np.clip(np.rint((pixels.transpose(1, 2, 0) + 1) * 127.5), 0, 255).astype(np.uint8)
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    parts = b"IHDR" + head, b"IDAT" + zlib.compress(rows), b"IEND"
    each = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(each)
