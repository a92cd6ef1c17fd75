"""Shard: what one process holds of a tensor."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """The elements [start, start + local.numel()) of a tensor of `shape`, in row-major order.

    local: the storage itself, of any shape; writing to it is writing to the tensor.
    group: the processes whose shards make up the whole; None where this one holds all of it.
    """

    local: Tensor
    start: int
    shape: torch.Size
    group: dist.ProcessGroup | None = None

    @classmethod
    def whole(cls, tensor: Tensor) -> "Shard":
        """All of `tensor`, which is not copied."""
        return cls(tensor.detach(), 0, tensor.shape)

    def full(self) -> Tensor:
        """The tensor; where this shard is all of it, not a copy. Collective over `group`."""
        if self.group is None:
            return self.local.view(self.shape)
        flat = torch.zeros(self.shape.numel(), dtype=self.local.dtype, device=self.local.device)
        self._range_of(flat).copy_(self.local.flatten())
        # Every element is one rank's, so that a sum is exact.
        dist.all_reduce(flat, group=self.group)
        return flat.view(self.shape)

    @torch.no_grad()
    def take(self, full: Tensor) -> None:
        """Sets what is held here to its range of `full`, which has `shape`."""
        self.local.copy_(self._range_of(full.flatten()).view(self.local.shape))

    def like(self, local: Tensor) -> "Shard":
        """The same range of another tensor of the same shape."""
        return Shard(local, self.start, self.shape, self.group)

    def _range_of(self, flat: Tensor) -> Tensor:
        return flat[self.start : self.start + self.local.numel()]
