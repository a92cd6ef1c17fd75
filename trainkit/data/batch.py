"""A batch: one rank's share of a global batch, and where in the run it stands."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainkit.data.columns import samples


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`function` of every tensor in a tree of dicts, lists, tuples and named tuples; other leaves stay as they are."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, list | tuple):
        mapped = [map_tensors(part, function) for part in tree]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)
    if isinstance(tree, Mapping):
        return {key: map_tensors(value, function) for key, value in tree.items()}
    return tree


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    The share is strided: of the global indices 0 .. size-1, rank r of W holds r, r+W, r+2W ... A micro-batch is the
    same thing again, strided over the share, so groups formed by global index modulo a multiple of W and of the
    accumulation never leave one share.

    data: a tree of tensors, arrays and lists, first dimension the samples of the share.
    position: samples before the global batch.  size: samples in the global batch.
    positions, indices: int64 [len] on the CPU: absolute position, and index in the data set, of each sample here.
    """

    data: Any
    position: int
    size: int
    positions: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return self.positions.numel()

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("data")
        if isinstance(data, Mapping) and name in data:
            return data[name]
        raise AttributeError(f"this batch has no {name!r}; its data is {_describe(data)}")

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """The same batch with its data on `device`, and floats as float64 where `dtype` is that.

        Copies from pinned memory do not block.
        """
        data = self.data
        if device.type != "cpu":
            data = map_tensors(data, lambda tensor: tensor.to(device, non_blocking=True))
        if dtype == torch.float64:
            data = map_tensors(data, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
        return self if data is self.data else replace(self, data=data)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; torch's DataLoader calls this."""
        return replace(self, data=map_tensors(self.data, Tensor.pin_memory))

    def micro_batch(self, number: int, count: int) -> "Batch":
        """Samples number, number + count, ... of this share. Raises ConfigError for data that cannot be cut so."""
        return replace(
            self,
            data=samples(self.data, len(self), slice(number, None, count)),
            positions=self.positions[number::count],
            indices=self.indices[number::count],
        )


def _describe(data: Any) -> str:
    return f"a dict of {', '.join(map(str, data))}" if isinstance(data, Mapping) else f"a {type(data).__name__}"
