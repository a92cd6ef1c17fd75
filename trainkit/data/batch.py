"""Batch: a rank's local batch, and its position in the run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainkit.data.columns import samples


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Applies a function to every tensor in a tree of dicts, lists, tuples and named tuples.

    Args:
        tree: the tree; leaves that are no tensors stay as they are.
        function: tensor -> tensor.

    Returns:
        A tree of the same structure.

    Example:
        >>> map_tensors({"x": torch.ones(2), "name": "a"}, lambda tensor: tensor + 1)
        {'x': tensor([2., 2.]), 'name': 'a'}
    """
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
    """The local batch of a rank: its samples of a global batch.

    The samples are strided: of the global indices 0 .. size-1, rank r of W holds r, r+W, r+2W ... A micro-batch is
    strided over the local batch in the same way, so groups formed by global index modulo a multiple of W and of the
    number of accumulation steps are never divided.

    An entry of a dict is also an attribute: `batch.tokens` is `batch.data["tokens"]`.

    Args:
        data: a tree of tensors, arrays and lists, first dimension the samples of the local batch.
        position: samples before the global batch.
        size: samples in the global batch.
        positions: int64 [len] on the CPU: the absolute position of each local sample.
        indices: int64 [len] on the CPU: the index in the data set of each local sample.
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
        """Moves the data to a device. Copies from pinned memory do not block.

        Args:
            device: where the data is needed.
            dtype: float64 converts floating-point data to float64; any other leaves dtypes as they are.

        Returns:
            The batch with the moved data.
        """
        data = self.data
        if device.type != "cpu":
            data = map_tensors(data, lambda tensor: tensor.to(device, non_blocking=True))
        if dtype == torch.float64:
            data = map_tensors(data, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
        return self if data is self.data else replace(self, data=data)

    def pin_memory(self) -> "Batch":
        """Returns the same batch in page-locked memory; tensors on a GPU stay there."""
        return replace(
            self, data=map_tensors(self.data, lambda tensor: tensor.pin_memory() if tensor.is_cpu else tensor)
        )

    def used_on(self, stream: torch.cuda.Stream) -> None:
        """Keeps the memory of tensors that were copied on another stream until `stream` has done its work on them."""

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        map_tensors(self.data, keep)

    def micro_batch(self, number: int, count: int) -> "Batch":
        """Takes a micro-batch: samples number, number + count, ... of this local batch.

        Args:
            number: of the micro-batch, from 0.
            count: micro-batches per step.

        Returns:
            The micro-batch.

        Raises:
            ConfigError: for data that cannot be divided by samples.
        """
        return replace(
            self,
            data=samples(self.data, len(self), slice(number, None, count)),
            positions=self.positions[number::count],
            indices=self.indices[number::count],
        )


def _describe(data: Any) -> str:
    return f"a dict of {', '.join(map(str, data))}" if isinstance(data, Mapping) else f"a {type(data).__name__}"
