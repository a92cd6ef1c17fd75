"""Slot: memory that processes share, through which the arrays of an object pass without being pickled."""

import io
import mmap
import os
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 64  # bytes: where an array begins


@dataclass(frozen=True)
class Packed:
    """An object whose arrays are in a slot.

    Args:
        header: the pickled object without the content of its arrays.
        sizes: bytes of each array.
    """

    header: bytes
    sizes: tuple[int, ...]

    @property
    def starts(self) -> list[int]:
        """Returns where each array begins, and where the next one would."""
        starts = [0]
        for size in self.sizes:
            starts.append(starts[-1] + -(-size // _ALIGNED) * _ALIGNED)
        return starts


class Slot:
    """An anonymous file in memory, which processes that are started afterwards, and are given it, share.

    It grows with what is put into it, has no name that a killed process could leave behind, and does not count as
    /dev/shm, which a container often limits to 64 MB.
    """

    def __init__(self) -> None:
        self._descriptor = _anonymous()
        self._map: mmap.mmap | None = None

    def __reduce__(self) -> tuple[Callable[[Any], "Slot"], tuple[Any]]:
        return _shared, (DupFd(self._descriptor),)

    def put(self, content: Any) -> Packed:
        """Writes an object, over the one before.

        Args:
            content: what can be pickled; arrays and dense tensors on the CPU pass as they lie in memory.

        Returns:
            What another process needs to `take` it.
        """
        buffers: list[memoryview] = []
        header = io.BytesIO()
        _Pickler(header, lambda buffer: buffers.append(buffer.raw())).dump(content)
        packed = Packed(header.getvalue(), tuple(buffer.nbytes for buffer in buffers))
        memory = self._mapped(packed.starts[-1])
        for start, buffer in zip(packed.starts, buffers, strict=False):
            np.copyto(memory[start : start + buffer.nbytes], np.frombuffer(buffer, np.uint8))
        return packed

    def take(self, packed: Packed) -> Any:
        """Copies an object out, so that the slot can be written again.

        Args:
            packed: what `put` returned in another process.

        Returns:
            The object.
        """
        starts = packed.starts
        memory = self._mapped(starts[-1]).copy()
        buffers = [memory[start : start + size] for start, size in zip(starts, packed.sizes, strict=False)]
        return pickle.loads(packed.header, buffers=buffers)

    def close(self) -> None:
        """Gives the memory back, once other processes have ended or closed it, too."""
        self._map = None
        os.close(self._descriptor)

    def _mapped(self, num_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Returns the first bytes, and makes the file so large."""
        if num_bytes == 0:
            return np.empty(0, np.uint8)
        if self._map is None or len(self._map) < num_bytes:
            size = os.fstat(self._descriptor).st_size
            if size < num_bytes:
                size = max(num_bytes, 2 * size)
                os.ftruncate(self._descriptor, size)
            self._map = mmap.mmap(self._descriptor, size)
        return np.frombuffer(self._map, np.uint8, num_bytes)


def _shared(descriptor: Any) -> Slot:
    slot = Slot.__new__(Slot)
    slot._descriptor, slot._map = descriptor.detach(), None
    return slot


def _anonymous() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("trainkit")
    with tempfile.TemporaryFile() as file:  # not Linux
        return os.dup(file.fileno())


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, buffer_callback: Callable[[pickle.PickleBuffer], Any]) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)

    def reducer_override(self, content: Any) -> Any:
        if type(content) is not Tensor or content.layout != torch.strided or not content.is_cpu or content.is_quantized:
            return NotImplemented
        dense = content.detach().resolve_conj().resolve_neg().contiguous()
        if not dense.numel():
            return _empty, (dense.shape, dense.dtype)
        raw = dense.view(-1).view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(raw.data), dense.dtype, dense.shape)


def _empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _tensor(buffer: Any, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return torch.frombuffer(buffer, dtype=dtype).view(shape)
