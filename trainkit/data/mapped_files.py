"""MappedFiles: arrays in files, of which a process has some mapped into memory."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MappedFiles:
    """Maps files into memory at their first use. Threads may share it; a copy in another process maps its own.

    Args:
        most: files that are mapped at a time. Each takes a file descriptor, of which a process often has 1024; of more
            files, the one that has been mapped longest is closed.
    """

    def __init__(self, most: int = 256) -> None:
        self.most = most
        self._arrays: dict[Path, NDArray[Any]] = {}
        self._lock = threading.Lock()

    def array(self, path: Path, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
        """Returns the elements of a file, read only.

        Args:
            path: of the file.
            dtype: of an element of a raw file; None: it is a .npy file.
        """
        found = self._arrays.get(path)
        if found is None:
            with self._lock:
                while len(self._arrays) >= self.most:
                    del self._arrays[next(iter(self._arrays))]
                found = np.load(path, mmap_mode="r") if dtype is None else np.memmap(path, dtype, mode="r")
                self._arrays[path] = found
        return found

    def __reduce__(self) -> tuple[type["MappedFiles"], tuple[int]]:
        return MappedFiles, (self.most,)
