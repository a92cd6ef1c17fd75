"""Rows: which images of a directory of pictures are in a data set, in a file that is mapped into memory."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 20  # rows


class Rows:
    """Places of images in their directory. A copy in another process maps the file again.

    Args:
        values: int64 [len]; or the path of a .npy file of them.
        digest: of the rows, as `digest_of` returns it; None: it is computed when it is asked for.
    """

    def __init__(self, values: NDArray[np.int64] | Path, digest: str | None = None) -> None:
        self._path = values if isinstance(values, Path) else None
        self.values: NDArray[np.int64] = np.load(values, mmap_mode="r") if isinstance(values, Path) else values
        self._digest = digest

    def __len__(self) -> int:
        return len(self.values)

    @property
    def digest(self) -> str:
        """Hash of the rows."""
        if self._digest is None:
            self._digest = digest_of(self.values)
        return self._digest

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.values if self._path is None else self._path, self._digest)


def digest_of(rows: NDArray[np.int64]) -> str:
    """Hashes rows, a part at a time."""
    whole = hashlib.blake2b(digest_size=16)
    for start in range(0, len(rows), _AT_ONCE):
        whole.update(rows[start : start + _AT_ONCE].tobytes())
    return whole.hexdigest()
