"""Shard: what one process holds of a tensor."""

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
"""By the names of safetensors, what checkpoints can hold."""
STORABLE = frozenset(DTYPES.values())
_MESSAGE_BYTES = 64 << 20


def is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Without the import of DTensor, half as long as torch's: whoever has made one has imported it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


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


def buffer_shards(module: nn.Module) -> dict[str, Shard]:
    """Persistent buffers by name: every rank has all of them."""
    persistent = module.state_dict(keep_vars=True)
    return {name: Shard.whole(buffer) for name, buffer in module.named_buffers() if name in persistent}


def aliases(module: nn.Module) -> dict[str, str]:
    """The further names of tied parameters and persistent buffers, each with the one that its tensor goes by."""
    first: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in named.items():
        first.setdefault(id(tensor), name)
    return {
        name: first[id(tensor)] for name, tensor in state.items() if id(tensor) in first and first[id(tensor)] != name
    }


def share_from_first(tensors: Sequence[Tensor]) -> None:
    """Gives every rank what rank 0 has in `tensors`, in one message where they are small. Collective."""
    if not tensors or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    small, num_bytes = [], 0
    for tensor in tensors:
        small.append(tensor.detach())
        num_bytes += tensor.numel() * tensor.element_size()
        if num_bytes >= _MESSAGE_BYTES:
            _share(small)
            small, num_bytes = [], 0
    if small:
        _share(small)


def _share(tensors: Sequence[Tensor]) -> None:
    # As bytes: gloo does not know every dtype.
    raw = [tensor.flatten().resolve_conj().view(torch.uint8) for tensor in tensors]
    together = torch.cat(raw)
    dist.broadcast(together, src=0)
    for tensor, part in zip(tensors, together.split([len(part) for part in raw]), strict=True):
        tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))  # cloned: aligned


def gathered(shards: Mapping[str, Shard], rank: int) -> dict[str, Tensor]:
    """The whole tensors; of those that are spread, only rank 0 gets them, on the CPU. Collective."""
    whole = {}
    for name, shard in shards.items():
        tensor = shard.full()  # one at a time
        if shard.group is None:
            whole[name] = tensor
        elif rank == 0:
            whole[name] = tensor.cpu()
    return whole


def require_fitting(into: Mapping[str, Shard], saved: Mapping[str, tuple[torch.Size, torch.dtype]], what: str) -> None:
    """Raises ConfigError naming the first tensor that is not in both, or has another shape there."""
    for name in sorted(into.keys() ^ saved.keys()):
        where = "the checkpoint" if name in into else "the module"
        raise ConfigError(f"{what}: {name!r} is missing from {where}; was the model's configuration another one?")
    for name, shard in into.items():
        if shard.shape != saved[name][0]:
            raise ConfigError(
                f"{what}: {name!r} has shape {[*shard.shape]}, the checkpoint's has {[*saved[name][0]]}; "
                f"was the model's configuration another one?"
            )


def take_fitting(mine: Mapping[str, Shard], old: Mapping[str, Shard]) -> None:
    """Fills the shards that `old` has under the same name and shape, however it spreads them. Collective."""
    for name, shard in mine.items():
        if name in old and old[name].shape == shard.shape:
            shard.take(old[name].full())
