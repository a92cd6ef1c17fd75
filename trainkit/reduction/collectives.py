"""Route: sums tensors over all ranks along a ReducePlan."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from trainkit.planning.reduce_plan import INT8_BLOCK, ReducePlan
from trainkit.reduction.codec import decode, encode
from trainkit.reduction.lane import Lane, Steps, Walk

_LAST_JOB_S = 5.0
# Renamed in torch 2.13, where the old names warn.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Span:
    """A chunk [start, stop) of a tensor, and the part [low, high) of it that this rank sends between groups."""

    start: int
    stop: int
    padded: int  # elements, with zeros at the end, that the legs divide evenly
    low: int
    high: int


class Route:
    """A plan with its process groups, one for each leg, so that the legs of different chunks overlap.

    Collective: every rank makes one, and calls `all_reduce` on equal sizes in the same order.
    """

    def __init__(self, plan: ReducePlan, *, rank: int, device: torch.device) -> None:
        self.plan, self.device = plan, device
        mine = next(group for group in plan.groups if rank in group)
        self._rank, self.place = rank, mine.index(rank)
        self.group_number, self.group_size = plan.groups.index(mine), len(mine)
        self._num_groups = len(plan.groups)
        self._leader = mine[0]
        self._is_leader = rank == self._leader
        self._groups: list[dist.ProcessGroup] = []
        self._lanes: list[Lane] = []
        self.error: BaseException | None = None
        """What a leg raised: the first one, of this rank."""
        self._lock = threading.Lock()
        if plan.kind in ("flat", "ring"):
            self._across = self._join([[rank for group in plan.groups for rank in group]])
            self._across_lane = self._lane("all-reduce")
            return
        across = list(zip(*plan.groups, strict=False))  # as many as the smallest group has ranks
        if plan.kind == "leader":
            across = across[:1]
        self._down, self._across = self._join(plan.groups), self._join(across)
        self._back = self._join(across) if plan.format != "exact" else None
        self._up = self._join(plan.groups)
        # Beside the legs, which have work of their own in line.
        self._beside = self._join(plan.groups) if plan.format == "int8" else None
        self._down_lane, self._across_lane = self._lane("reduce in the group"), self._lane("across")
        self._back_lane, self._up_lane = self._lane("back across"), self._lane("spread in the group")

    def all_reduce(self, flat: Tensor, *, factor: float = 1.0, errors: Sequence[Tensor] = ()) -> "Future[Tensor]":
        """Replaces the 1-d `flat` by `factor` times its sum over ranks; the same bits on all of them. Collective.

        errors: one tensor a span of `spans`, [high - low]: what int8 left out of this rank's parts the last time,
            which is added now and replaced by what it leaves out this time.
        The future fails with what a leg raised; so do all later calls.
        """
        future: Future[Tensor] = Future(devices=[self.device] if self.device.type == "cuda" else None)
        if self.error is not None:
            future.set_exception(self.error)  # type: ignore[arg-type]
            return future
        if not flat.numel():
            future.set_result(flat)
            return future
        spans = self.spans(flat.numel(), flat.element_size())
        remaining = len(spans)

        def done() -> None:
            nonlocal remaining
            with self._lock:
                remaining -= 1
                if not remaining:
                    future.set_result(flat)

        def failed(error: BaseException) -> None:
            with self._lock:  # lanes fail at the same time
                self.error = self.error or error
                if not future.done():
                    future.set_exception(error)  # type: ignore[arg-type]

        for i, span in enumerate(spans):
            Walk(self._steps(flat, span, factor, errors[i] if errors else None), done, failed)
        return future

    def spans(self, num: int, element_size: int) -> list[Span]:
        """The chunks of a tensor of `num` elements, in the order in which they are reduced."""
        plan = self.plan
        whole = plan.kind in ("flat", "ring") or not num
        unit = 1 if whole else self._unit()
        length = (
            num if whole or plan.chunk_bytes is None else max(unit, plan.chunk_bytes // element_size // unit * unit)
        )
        spans = []
        for start in range(0, num, length):
            stop = min(start + length, num)
            padded = -(-(stop - start) // unit) * unit
            low, high = 0, padded
            if plan.kind == "hierarchical":
                share = padded // self.group_size
                low, high = self.place * share, (self.place + 1) * share
            elif plan.kind == "leader" and not self._is_leader:
                high = 0
            spans.append(Span(start, stop, padded, start + low, start + high))
        return spans

    def sum_in_group(self, tensor: Tensor) -> None:
        """Replaces `tensor` by its sum over the ranks of this one's group, for int8. Collective in the group."""
        if self._beside is not None:
            dist.all_reduce(tensor, group=self._beside)

    def close(self) -> None:
        """Lets go of threads and process groups; nothing can be summed any more."""
        if self.error is not None:
            for group in self._groups:
                group.abort()  # so that no lane waits for ever, nor is inside when the interpreter ends
        self.error = self.error or RuntimeError("the route is closed")
        for lane in self._lanes:
            lane.end(_LAST_JOB_S)
        self._lanes.clear()
        while self._groups:
            group = self._groups.pop()
            if dist.is_initialized():  # else they ended with the user's own group
                with suppress(RuntimeError, ValueError):  # a peer that is gone cannot take its leave
                    dist.destroy_process_group(group)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _join(self, groups: Sequence[Sequence[int]]) -> dist.ProcessGroup | None:
        """The process group of that one of `groups` in which this rank is; None: in none, or alone."""
        joined = None
        for ranks in groups:
            if len(ranks) > 1:
                # By all ranks, members or not: names of groups that only their members make are used again after a
                # group's end, with what the old one left in the store.
                group: dist.ProcessGroup = dist.new_group(list(ranks), sort_ranks=False)
                if self._rank in ranks:
                    joined = group
                    self._groups.append(group)
        return joined

    def _lane(self, name: str) -> Lane:
        self._lanes.append(Lane(self.device, name))
        return self._lanes[-1]

    def _unit(self) -> int:
        """What the length of a chunk must be a multiple of."""
        parts = self.group_size if self.plan.kind == "hierarchical" else 1
        return parts if self.plan.format == "exact" else parts * self._num_groups * INT8_BLOCK

    def _steps(self, flat: Tensor, span: Span, factor: float, errors: Tensor | None) -> Steps:
        if self.plan.kind in ("flat", "ring"):
            yield self._across_lane
            if factor != 1.0:
                flat.mul_(factor)
            dist.all_reduce(flat, group=self._across)
            return
        yield self._down_lane
        view = flat[span.start : span.stop]
        chunk = view
        if span.padded != len(view):
            chunk = flat.new_zeros(span.padded)
            chunk[: len(view)] = view
        part = self._reduce_in_group(chunk)
        if part is not None:
            if factor != 1.0:
                part.mul_(factor)
            if self.plan.format == "exact":
                yield self._across_lane
                _outlive_stream(part)
                dist.all_reduce(part, group=self._across)
            else:
                yield from self._across_encoded(part, errors)
        yield self._up_lane
        _outlive_stream(chunk)
        self._spread_in_group(chunk, part)
        if chunk is not view:
            view.copy_(chunk[: len(view)])

    def _reduce_in_group(self, chunk: Tensor) -> Tensor | None:
        """The part of the group's sum that this rank sends across; None where it sends nothing."""
        if self._down is None:
            return chunk
        if self.plan.kind == "leader":
            dist.reduce(chunk, dst=self._leader, group=self._down)
            return chunk if self._is_leader else None
        if self.device.type == "cuda":
            part = chunk.new_empty(len(chunk) // self.group_size)
            _reduce_scatter(part, chunk, group=self._down)
            return part
        # gloo's reduce-scatter is an all-reduce, which sends twice as much.
        theirs = torch.empty_like(chunk)
        dist.all_to_all_single(theirs, chunk, group=self._down)
        return theirs.view(self.group_size, -1).sum(0)

    def _across_encoded(self, part: Tensor, errors: Tensor | None) -> Steps:
        """All-reduce between groups: everyone sums one piece, exactly, of what all have encoded, and encodes the sum.

        All ranks decode the same bytes, and so have the same bits.
        """
        format, dtype = self.plan.format, part.dtype
        pieces = part.view(self._num_groups, -1)
        length = pieces.shape[1]
        if errors is not None:
            part += errors
        sent = encode(pieces, format)
        if errors is not None:
            torch.sub(part, decode(sent, length, dtype, format).view(-1), out=errors)
        yield self._across_lane
        received = torch.empty_like(sent)
        _outlive_stream(sent)
        dist.all_to_all_single(received, sent, group=self._across)
        yield self._back_lane
        _outlive_stream(received)
        total = decode(received, length, dtype, format).sum(0, keepdim=True)
        sent = encode(total, format)
        if errors is not None:
            own = errors.view(self._num_groups, -1)[dist.get_rank(self._across)]
            own += (total - decode(sent, length, dtype, format))[0]
            # What was infinite is told by the sum; kept here, it would be told for ever.
            torch.nan_to_num_(errors, nan=0.0, posinf=0.0, neginf=0.0)
        _all_gather(received, sent, group=self._back)
        pieces.copy_(decode(received, length, dtype, format))

    def _spread_in_group(self, chunk: Tensor, part: Tensor | None) -> None:
        if self._up is None:
            return
        if self.plan.kind == "leader":
            dist.broadcast(chunk, src=self._leader, group=self._up)
        else:
            assert part is not None
            _outlive_stream(part)
            _all_gather(chunk, part, group=self._up)


def _outlive_stream(tensor: Tensor) -> None:
    """Its memory must not be given to others before the current stream is done with it."""
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
