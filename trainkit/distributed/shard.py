"""Shard: the part of a tensor that one process holds."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""The dtypes that checkpoints can hold, by their names in safetensors."""
STORABLE = frozenset(DTYPES.values())
"""The dtypes that checkpoints can hold."""
_MESSAGE_BYTES = 64 << 20


def is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether `tensor` is a DTensor; does not import the module, which takes half as long as to import torch."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


@dataclass(frozen=True)
class Shard:
    """The elements [start, start + local.numel()) of a tensor of `shape`, in row-major order.

    Args:
        local: the storage itself, of any shape; a write to it changes the tensor.
        start: the first of its elements in the full tensor.
        shape: of the full tensor.
        group: the processes whose shards make up the full tensor; None where this process holds all of it.

    Example:
        >>> shard = Shard.whole(torch.arange(6.0).view(2, 3))
        >>> shard.start, shard.shape, shard.full()[1]
        (0, torch.Size([2, 3]), tensor([3., 4., 5.]))
    """

    local: Tensor
    start: int
    shape: torch.Size
    group: dist.ProcessGroup | None = None

    @classmethod
    def whole(cls, tensor: Tensor) -> "Shard":
        """The shard that is all of `tensor`, which is not copied."""
        return cls(tensor.detach(), 0, tensor.shape)

    def full(self) -> Tensor:
        """Gathers the full tensor. Collective: every rank of `group` must call.

        Returns:
            A tensor of `shape`; not a copy where `group` is None.
        """
        if self.group is None:
            return self.local.view(self.shape)
        flat = torch.zeros(self.shape.numel(), dtype=self.local.dtype, device=self.local.device)
        self._range_of(flat).copy_(self.local.flatten())
        # Each element is non-zero on one rank at most, so the sum is exact.
        dist.all_reduce(flat, group=self.group)
        return flat.view(self.shape)

    @torch.no_grad()
    def take(self, full: Tensor) -> None:
        """Copies this shard's range of `full`, a tensor of `shape`, into `local`."""
        self.local.copy_(self._range_of(full.flatten()).view(self.local.shape))

    def like(self, local: Tensor) -> "Shard":
        """The same range of another tensor of the same shape, whose elements `local` holds."""
        return Shard(local, self.start, self.shape, self.group)

    def _range_of(self, flat: Tensor) -> Tensor:
        return flat[self.start : self.start + self.local.numel()]


def buffer_shards(module: nn.Module) -> dict[str, Shard]:
    """The persistent buffers of a module by name, each a whole tensor."""
    persistent = module.state_dict(keep_vars=True)
    return {name: Shard.whole(buffer) for name, buffer in module.named_buffers() if name in persistent}


def aliases(module: nn.Module) -> dict[str, str]:
    """The second and further names of tied parameters and persistent buffers.

    Returns:
        For each further name the first name of the same tensor.

    Example:
        >>> module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        >>> module[1].weight = module[0].weight
        >>> aliases(module)
        {'1.weight': '0.weight'}
    """
    first: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in named.items():
        first.setdefault(id(tensor), name)
    return {
        name: first[id(tensor)] for name, tensor in state.items() if id(tensor) in first and first[id(tensor)] != name
    }


def broadcast_from_first(tensors: Sequence[Tensor]) -> None:
    """Broadcasts `tensors` from rank 0, several small ones in one message. Collective: every rank must call.

    Args:
        tensors: of the same shapes and dtypes on all ranks; changed in place.
    """
    if not tensors or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    small, num_bytes = [], 0
    for tensor in tensors:
        small.append(tensor.detach())
        num_bytes += tensor.numel() * tensor.element_size()
        if num_bytes >= _MESSAGE_BYTES:
            _broadcast(small)
            small, num_bytes = [], 0
    if small:
        _broadcast(small)


def _broadcast(tensors: Sequence[Tensor]) -> None:
    # As bytes: gloo does not support every dtype.
    raw = [tensor.flatten().resolve_conj().view(torch.uint8) for tensor in tensors]
    together = torch.cat(raw)
    dist.broadcast(together, src=0)
    for tensor, part in zip(tensors, together.split([len(own) for own in raw]), strict=True):
        tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))  # the clone is aligned


def gathered(shards: Mapping[str, Shard], rank: int) -> dict[str, Tensor]:
    """Gathers the full tensors. Collective: every rank must call.

    Args:
        shards: by name, in the same order on all ranks.
        rank: of this process.

    Returns:
        By name; sharded ones on rank 0 only, on the CPU.
    """
    whole = {}
    for name, shard in shards.items():
        tensor = shard.full()  # only one is on the device at a time
        if shard.group is None:
            whole[name] = tensor
        elif rank == 0:
            whole[name] = tensor.cpu()
    return whole


def require_fitting(into: Mapping[str, Shard], saved: Mapping[str, tuple[torch.Size, torch.dtype]], what: str) -> None:
    """Checks that saved tensors have the names and shapes of those that they are loaded into.

    Args:
        into: the shards to load into, by name.
        saved: shape and dtype of the saved tensors, by name.
        what: is loaded, for the message of an error.

    Raises:
        ConfigError: naming the first tensor that is not in both, or has another shape.
    """
    for name in sorted(into.keys() ^ saved.keys()):
        where = "the checkpoint" if name in into else "the module"
        raise ConfigError(
            f"{what}: {name!r} is missing from {where}; load it with the configuration that it was saved with"
        )
    for name, shard in into.items():
        if shard.shape != saved[name][0]:
            raise ConfigError(
                f"{what}: {name!r} has shape {[*shard.shape]}, the checkpoint's has {[*saved[name][0]]}; "
                f"load it with the configuration that it was saved with"
            )


def take_fitting(mine: Mapping[str, Shard], old: Mapping[str, Shard]) -> None:
    """Copies tensors of the same name and shape from another engine. Collective: every rank must call.

    Args:
        mine: the shards to copy into.
        old: the shards to copy from; they may be distributed in another way.
    """
    for name, shard in mine.items():
        if name in old and old[name].shape == shard.shape:
            shard.take(old[name].full())
