"""What an optimizer's tensors consist of, where a strategy cuts parameters up or lays them one after the other.

Most optimizers do not care: they treat every element by itself. One that needs norms of whole parameters, or is told
something of single elements, is a `PiecewiseOptimizer`, and an Engine tells it.
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
class Piece:
    """Elements [start, start + num) of parameter `name`, which has `numel`, as a rank's optimizer holds them.

    They are [offset, offset + num) of what this rank has of one of the optimizer's tensors. A piece may be empty.
    """

    name: str
    start: int
    num: int
    numel: int
    offset: int = 0


class PiecewiseOptimizer(torch.optim.Optimizer):
    """An optimizer that may be told which parameters, or ranges of them, its tensors consist of.

    Without `set_pieces`, every tensor is a whole parameter, and has no name.
    """

    _pieces: Mapping[Tensor, Sequence[Piece]] | None = None
    _group: dist.ProcessGroup | None = None
    _sum_device: torch.device | None = None
    # Of each tensor, and of its pieces in their order.
    _bits: Mapping[Tensor, Sequence[Tensor | None]] = {}
    _copies: Mapping[Tensor, Sequence[Tensor | None]] = {}

    def set_pieces(
        self, pieces: Mapping[Tensor, Sequence[Piece]], *, group: dist.ProcessGroup | None, device: torch.device
    ) -> None:
        """Says what the tensors consist of; whoever calls this clips gradients, too.

        pieces: of each tensor of the parameter groups, in the same order on every rank; every rank lists every
            parameter, if only with an empty piece.
        group: the ranks that together hold each parameter once; None where this one holds it whole.
        device: where a tensor must be to be summed over `group`.
        Raises ConfigError on all ranks where the pieces are not the whole of each parameter. Collective over `group`.
        """
        everything = [piece for held in pieces.values() for piece in held]
        held = torch.tensor([piece.num for piece in everything], device=device)
        if group is not None:
            dist.all_reduce(held, group=group)
        for piece, num in zip(everything, held.tolist(), strict=True):
            if num != piece.numel:
                raise ConfigError(
                    f"optimizer {type(self).__name__} needs to know where each parameter is, and under this strategy "
                    f"the ranks of a group hold {num} elements of {piece.name!r}, which has {piece.numel}: leave out "
                    f"strategy.config, or use strategy=fsdp or ddp"
                )
        self._pieces, self._group, self._sum_device = dict(pieces), group, device

    @torch.no_grad()
    def set_masks(self, masks: Mapping[Any, Tensor]) -> None:
        """Has weights be exactly 0 where a mask is: from now on, and after every step. Earlier masks are forgotten.

        masks: bits of whole parameters, as `pack_bits` makes them, of some or all. The keys are names where
            `set_pieces` was called, as an Engine does, and otherwise the parameters themselves.
        An Engine's module may compute with other tensors than the optimizer's: use `engine.state.set_masks`.
        Raises UsageError for a parameter that the optimizer does not have, and for bits of another number of elements.
        """

        def bits_of(bits: Tensor, piece: Piece, view: Tensor) -> Tensor:
            mine = unpack_bits(bits, piece.numel)[piece.start : piece.start + piece.num]
            return pack_bits(mine).to(view.device)

        self._bits = self._arranged(masks, bits_of)
        self._mask(self._bits)

    @torch.no_grad()
    def set_copies(self, copies: Mapping[Any, Tensor]) -> None:
        """Has every step write new weights to `copies` as well, rounded to their dtype: bf16 beside fp32, say.

        copies: keys as for `set_masks`; each has as many elements as this rank holds of the parameter, and is
            contiguous. They are written now, too. Earlier copies are forgotten. Raises UsageError as `set_masks`.
        """

        def copy_of(copy: Tensor, piece: Piece, view: Tensor) -> Tensor:
            if copy.numel() != view.numel() or copy.device != view.device or not copy.is_contiguous():
                raise UsageError(
                    f"set_copies: a copy of {piece.name or 'a parameter'} is {[*copy.shape]} on {copy.device}, and "
                    f"must be {[*view.shape]} on {view.device}, and contiguous"
                )
            return copy.view(view.shape)

        self._copies = self._arranged(copies, copy_of)
        self._copy(self._copies)

    # -- for subclasses ----------------------------------------------------------------------------------------------

    def _views(self, tensor: Tensor, p: Tensor) -> list[Tensor]:
        """The pieces, in their order, of `tensor`, which is `p` or laid out as it is; not to be differentiated."""
        if is_dtensor(tensor):
            if self._pieces is None:
                raise UsageError(
                    f"{type(self).__name__} was given sharded parameters, and nobody has told it how: make it with "
                    f"Runtime.setup, or call set_pieces"
                )
            tensor = tensor.to_local()
        pieces = self._pieces[p] if self._pieces is not None else None
        if pieces is None or (len(pieces) == 1 and pieces[0].num == tensor.numel()):
            return [tensor]
        return [tensor[piece.offset : piece.offset + piece.num] for piece in pieces]

    def _stepped(self) -> list[Tensor]:
        """The tensors that `step` is to update: DeepSpeed shows an optimizer one group at a time."""
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
        """The pieces of `tensors` that have something in `table`, and that."""
        for p in tensors:
            if p in table:
                for view, found in zip(self._views(p.detach(), p), table[p], strict=True):
                    if found is not None:
                        yield view, found

    # -- inside ------------------------------------------------------------------------------------------------------

    def _arranged(
        self, given: Mapping[Any, Tensor], take: Callable[[Tensor, Piece, Tensor], Tensor]
    ) -> dict[Tensor, list[Tensor | None]]:
        arranged: dict[Tensor, list[Tensor | None]] = {}
        left = dict(given)
        for p, pieces in self._known_pieces().items():
            views = self._views(p.detach(), p)
            keys = [p if self._pieces is None else piece.name for piece in pieces]
            if any(key in left for key in keys):
                arranged[p] = [
                    take(left.pop(key), piece, view) if key in left else None
                    for key, piece, view in zip(keys, pieces, views, strict=True)
                ]
        if left:
            key = next(iter(left))
            what = repr(key) if isinstance(key, str) else f"a parameter of shape {[*key.shape]}"
            raise UsageError(f"{type(self).__name__} does not hold {what}: give what it was made with")
        return arranged

    def _known_pieces(self) -> Mapping[Tensor, Sequence[Piece]]:
        if self._pieces is not None:
            return self._pieces
        return {p: [Piece("", 0, p.numel(), p.numel())] for p in self._stepped()}


def require_whole(optimizer: torch.optim.Optimizer, pieces: Mapping[Tensor, Sequence[Piece]]) -> None:
    """Raises ConfigError when `optimizer` says `needs_whole_parameters` and is given pieces."""
    if not getattr(optimizer, "needs_whole_parameters", False):
        return
    for p, held in pieces.items():
        if len(held) != 1 or held[0].num != held[0].numel or is_dtensor(p):
            raise ConfigError(
                f"optimizer {type(optimizer).__name__} takes norms of the tensors that it is given, and this strategy "
                f"gives it parts of parameters such as {held[0].name!r}: use optimizer=lamb, or strategy=ddp"
            )


def mask_range(local: Tensor, bits: Tensor, start: int, numel: int) -> None:
    """Sets `local`, elements [start, ...) of a tensor of `numel`, to 0 where the bits of that tensor are 0."""
    kept = unpack_bits(bits, numel)[start : start + local.numel()]
    local.masked_fill_(~kept.view(local.shape).to(local.device), 0.0)


def mask_after_steps(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, Shard], masks: Mapping[str, Tensor]
) -> RemovableHandle:
    """Has `weights` be 0 where their `masks` are, now and after every step of an optimizer that knows no masks.

    The bits are read at every step. Raises UsageError for a mask of no weight.
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
    return table[p][i] if p in table else None
