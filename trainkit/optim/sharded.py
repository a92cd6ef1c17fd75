"""ShardedOptimizer: an optimizer that knows which parameters its tensors consist of, where a strategy shards them.

Most optimizers treat every element independently and need not know. One that computes norms of whole parameters, or
treats some elements specially, is a `ShardedOptimizer`, and an Engine calls its `set_ranges`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from trainkit.distributed.shard import Shard, is_dtensor
from trainkit.errors import ConfigError, UsageError
from trainkit.ops.bits import pack_bits, unpack_bits


@dataclass(frozen=True)
class ParameterRange:
    """A range of a parameter's elements in a tensor of an optimizer on this rank. It may be empty.

    Args:
        name: of the parameter.
        start: the first element of the range in the flattened parameter.
        num: elements in the range.
        numel: elements of the whole parameter.
        offset: the first element of the range in this rank's part of the optimizer's tensor.
    """

    name: str
    start: int
    num: int
    numel: int
    offset: int = 0


class ShardedOptimizer(torch.optim.Optimizer):
    """An optimizer that can be given the parameters, or ranges of them, that its tensors consist of.

    Without `set_ranges`, every tensor is a whole parameter, and has no name.
    """

    _ranges: Mapping[Tensor, Sequence[ParameterRange]] | None = None
    _group: dist.ProcessGroup | None = None
    _sum_device: torch.device | None = None
    # By tensor, in the order of its ranges.
    _bits: Mapping[Tensor, Sequence[Tensor | None]] = {}
    _copies: Mapping[Tensor, Sequence[Tensor | None]] = {}

    def set_ranges(
        self,
        ranges: Mapping[Tensor, Sequence[ParameterRange]],
        *,
        group: dist.ProcessGroup | None,
        device: torch.device,
    ) -> None:
        """Sets the contents of the tensors; the caller also clips gradients.

        Collective over `group`: every rank must call.

        Args:
            ranges: for each tensor of the parameter groups, in the same order on every rank; every rank lists every
                parameter, possibly with an empty range.
            group: the ranks that together hold each parameter once; None: this rank holds it whole.
            device: where a tensor must be to be summed over `group`.

        Raises:
            ConfigError: on all ranks, where the ranges do not make up each parameter.
        """
        everything = [part for held in ranges.values() for part in held]
        held = torch.tensor([part.num for part in everything], device=device)
        if group is not None:
            dist.all_reduce(held, group=group)
        for part, num in zip(everything, held.tolist(), strict=True):
            if num != part.numel:
                raise ConfigError(
                    f"optimizer {type(self).__name__} needs to know where each parameter is, and under this strategy "
                    f"the ranks of a group hold {num} elements of {part.name!r}, which has {part.numel}: remove "
                    f"strategy.config, or use strategy=fsdp or ddp"
                )
        self._ranges, self._group, self._sum_device = dict(ranges), group, device

    @torch.no_grad()
    def set_masks(self, masks: Mapping[Any, Tensor]) -> None:
        """Sets weights to exactly 0 by masks, now and after every step. Earlier masks are dropped.

        An Engine's module may compute with other tensors than its optimizer: use `engine.state.set_masks` there.

        Args:
            masks: bits of whole parameters, as made by `pack_bits`, of some or all. The keys are names where
                `set_ranges` was called, as by an Engine, and otherwise the parameters themselves.

        Raises:
            UsageError: for a parameter that the optimizer does not have, and for another number of bits.
        """

        def bits_of(bits: Tensor, part: ParameterRange, view: Tensor) -> Tensor:
            mine = unpack_bits(bits, part.numel)[part.start : part.start + part.num]
            return pack_bits(mine).to(view.device)

        self._bits = self._arranged(masks, bits_of)
        self._mask(self._bits)

    @torch.no_grad()
    def set_copies(self, copies: Mapping[Any, Tensor]) -> None:
        """Sets tensors to which every step also writes the new weights.

        They are rounded to the dtype of the copy, such as bf16 beside fp32, and are written now, too. Earlier copies
        are dropped.

        Args:
            copies: keys as for `set_masks`; each has as many elements as this rank holds of the parameter, and is
                contiguous.

        Raises:
            UsageError: for a parameter that the optimizer does not have, and for a copy that does not match.
        """

        def copy_of(copy: Tensor, part: ParameterRange, view: Tensor) -> Tensor:
            if copy.numel() != view.numel() or copy.device != view.device or not copy.is_contiguous():
                raise UsageError(
                    f"set_copies: a copy of {part.name or 'a parameter'} is {[*copy.shape]} on {copy.device}, and "
                    f"must be {[*view.shape]} on {view.device}, and contiguous"
                )
            return copy.view(view.shape)

        self._copies = self._arranged(copies, copy_of)
        self._copy(self._copies)

    # -- for subclasses ----------------------------------------------------------------------------------------------

    def _views(self, tensor: Tensor, p: Tensor) -> list[Tensor]:
        """Returns the ranges, in order, of `tensor`, which is `p` or has its layout; not differentiable."""
        if is_dtensor(tensor):
            if self._ranges is None:
                raise UsageError(
                    f"{type(self).__name__} has sharded parameters, and their ranges are not set: make it with "
                    f"Runtime.setup, or call set_ranges"
                )
            tensor = tensor.to_local()
        ranges = self._ranges[p] if self._ranges is not None else None
        if ranges is None or (len(ranges) == 1 and ranges[0].num == tensor.numel()):
            return [tensor]
        return [tensor[part.offset : part.offset + part.num] for part in ranges]

    def _stepped(self) -> list[Tensor]:
        """Returns the tensors that `step` updates: DeepSpeed presents one group at a time."""
        return [p for group in self.param_groups for p in group["params"]]

    def _mask(self, tensors: Iterable[Tensor]) -> None:
        for view, bits in self._with(self._bits, tensors):
            mask_range(view, bits, 0, view.numel())

    def _copy(self, tensors: Iterable[Tensor]) -> None:
        for view, copy in self._with(self._copies, tensors):
            copy.copy_(view)

    def _with(
        self, table: Mapping[Tensor, Sequence[Tensor | None]], tensors: Iterable[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the ranges of `tensors` that have an entry in `table`, with that entry."""
        for p in tensors:
            if p in table:
                for view, found in zip(self._views(p.detach(), p), table[p], strict=True):
                    if found is not None:
                        yield view, found

    # -- inside ------------------------------------------------------------------------------------------------------

    def _arranged(
        self, given: Mapping[Any, Tensor], take: Callable[[Tensor, ParameterRange, Tensor], Tensor]
    ) -> dict[Tensor, list[Tensor | None]]:
        arranged: dict[Tensor, list[Tensor | None]] = {}
        left = dict(given)
        for p, ranges in self._known_ranges().items():
            views = self._views(p.detach(), p)
            keys = [p if self._ranges is None else part.name for part in ranges]
            if any(key in left for key in keys):
                arranged[p] = [
                    take(left.pop(key), part, view) if key in left else None
                    for key, part, view in zip(keys, ranges, views, strict=True)
                ]
        if left:
            key = next(iter(left))
            what = repr(key) if isinstance(key, str) else f"a parameter of shape {[*key.shape]}"
            raise UsageError(f"{type(self).__name__} does not hold {what}: give what it was made with")
        return arranged

    def _known_ranges(self) -> Mapping[Tensor, Sequence[ParameterRange]]:
        if self._ranges is not None:
            return self._ranges
        return {p: [ParameterRange("", 0, p.numel(), p.numel())] for p in self._stepped()}


def require_whole(optimizer: torch.optim.Optimizer, ranges: Mapping[Tensor, Sequence[ParameterRange]]) -> None:
    """Raises ConfigError where an optimizer has `needs_whole_parameters` and its tensors are ranges of parameters."""
    if not getattr(optimizer, "needs_whole_parameters", False):
        return
    for p, held in ranges.items():
        if len(held) != 1 or held[0].num != held[0].numel or is_dtensor(p):
            raise ConfigError(
                f"optimizer {type(optimizer).__name__} computes norms of its tensors, and this strategy "
                f"gives it parts of parameters such as {held[0].name!r}: use optimizer=lamb, or strategy=ddp"
            )


def mask_range(local: Tensor, bits: Tensor, start: int, numel: int) -> None:
    """Sets elements of a shard to 0 by a mask.

    Args:
        local: elements [start, ...) of a tensor.
        bits: the mask of the whole tensor, as made by `pack_bits`.
        start: the first element of the shard.
        numel: elements of the whole tensor.
    """
    kept = unpack_bits(bits, numel)[start : start + local.numel()]
    local.masked_fill_(~kept.view(local.shape).to(local.device), 0.0)


def mask_after_steps(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, Shard], masks: Mapping[str, Tensor]
) -> RemovableHandle:
    """Sets weights to 0 by masks, now and after every step of an optimizer without `set_masks`.

    Args:
        optimizer: whose steps are followed.
        weights: this rank's shards, by name.
        masks: bits by name, as made by `pack_bits`; they are read at every step.

    Returns:
        A handle that ends it.

    Raises:
        UsageError: for a mask without a weight.
    """
    for name in masks.keys() - weights.keys():
        raise UsageError(f"set_masks: there is no parameter {name!r}")

    @torch.no_grad()
    def mask(*_: Any) -> None:
        for name, bits in masks.items():
            mask_range(weights[name].local, bits, weights[name].start, weights[name].shape.numel())

    mask()
    return optimizer.register_step_post_hook(mask)


def at(table: Mapping[Tensor, Sequence[Tensor | None]], p: Tensor, i: int) -> Tensor | None:
    """Returns entry `i` of `p` in `table`; None where there is none."""
    return table[p][i] if p in table else None
