"""GrowingArray: a .npy file that is written part by part, of an array that need not fit into memory."""

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray


class GrowingArray:
    """A context that appends to an array [n] in a new .npy file, which is whole when the context ends.

    Args:
        path: of the file.
        dtype: of an element.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._file = path.open("wb")
        self._num = 0
        self._data = self._write_header()

    def __len__(self) -> int:
        return self._num

    def append(self, values: NDArray[Any]) -> None:
        """Appends values [k], of any type that `dtype` holds."""
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self._num += len(values)

    def _write_header(self) -> int:
        """Returns where the data begin, which is the same for any length: NumPy leaves room for it to grow."""
        facts = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self._num,)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, facts)
        return self._file.tell()

    def __enter__(self) -> "GrowingArray":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None and self._write_header() != self._data:
                raise AssertionError("the header of a .npy file has grown into its data")
