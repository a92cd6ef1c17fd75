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
from trainkit.reduction.comm_stream import CommStream, PhaseRunner, Phases
from trainkit.reduction.quantization import dequantize, quantize

_LAST_JOB_S = 5.0
_NUM_LANES = {"cpu": 2, "cuda": 1}
"""While the ranks of one of gloo's collectives wait for each other, the link would be idle: another chunk fills it."""
_FIRST_PARTS, _FEWEST_CHUNKS = 4, 4
"""Of many chunks, the first is cut into parts, so that the link between hosts has something to send earlier. Measured
on the bed: 0.7 to 3 % less time with exact gradients over gloo, and more with int8, where each chunk costs more."""
# Renamed in torch 2.13, where the old names warn.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Chunk:
    """The elements [start, stop) of a tensor that go through the phases together.

    Args:
        start: the first element of the chunk.
        stop: the element after its last.
        padded: its length in elements with the zeros that are added for the phases to divide it evenly.
        own_start: the first element that this rank sends between groups.
        own_stop: the element after the last of these; `own_start` where this rank sends nothing.
    """

    start: int
    stop: int
    padded: int
    own_start: int
    own_stop: int

    @property
    def num_own(self) -> int:
        """The number of elements that this rank sends between groups."""
        return self.own_stop - self.own_start


@dataclass(frozen=True)
class _Lane:
    """The process groups and streams of the phases after the first; chunks take the lanes in turn.

    A lane keeps its chunks in their order, which is the same on all ranks; chunks of different lanes may overtake.
    """

    across: dist.ProcessGroup | None
    back: dist.ProcessGroup | None
    outward: dist.ProcessGroup | None
    across_stream: CommStream
    back_stream: CommStream
    outward_stream: CommStream


class Route:
    """Sums tensors along a plan. Collective: every rank must create one, and call `all_reduce` in the same order.

    Each phase of the plan has its own process group and its own stream, so that the phases of different chunks overlap;
    with gloo, the phases between groups have two of each.

    Args:
        plan: the same on all ranks.
        rank: of this process in the default process group.
        device: where the tensors are.

    Example:
        A route over 4 ranks on 2 hosts, in each of the 4 processes::

            plan = ReducePlan(kind="hierarchical", groups=((0, 1), (2, 3)))
            route = Route(plan, rank=dist.get_rank(), device=torch.device("cpu"))
            route.all_reduce(gradient).wait()  # gradient now holds the sum over the 4 ranks
            route.close()
    """

    def __init__(self, plan: ReducePlan, *, rank: int, device: torch.device) -> None:
        self.plan, self.device = plan, device
        mine = next(group for group in plan.groups if rank in group)
        self._rank, self.group_rank = rank, mine.index(rank)
        self.group_index, self.group_size = plan.groups.index(mine), len(mine)
        self._num_groups = len(plan.groups)
        self._leader = mine[0]
        self._is_leader = rank == self._leader
        self._groups: list[dist.ProcessGroup] = []
        self._streams: list[CommStream] = []
        self.error: BaseException | None = None
        """The first error that a phase raised on this rank."""
        self._lock = threading.Lock()
        self._lanes: list[_Lane] = []
        self._num_chunks = 0
        if plan.kind in ("flat", "ring"):
            self._whole = self._join([[rank for group in plan.groups for rank in group]])
            self._whole_stream = self._stream("all-reduce")
            return
        self._inward, self._inward_stream = self._join(plan.groups), self._stream("reduce within the group")
        self._lanes = [self._lane(number) for number in range(_NUM_LANES[device.type])]
        # Not one of the phases' own groups: those have collectives of other chunks in their queues.
        self._error_group = self._join(plan.groups) if plan.wire_dtype == "int8" else None

    def all_reduce(self, flat: Tensor, *, factor: float = 1.0, errors: Sequence[Tensor] = ()) -> "Future[Tensor]":
        """Replaces `flat` by `factor` times its sum over ranks. Collective: every rank must call.

        The result has the same bits on all ranks.

        Args:
            flat: [N], changed in place once the future is done.
            factor: for example 1 / world_size for a mean.
            errors: error feedback of int8: for each of `chunks`, the [num_own] quantization errors of the last
                call, which are added to this rank's elements and replaced by those of this call.

        Returns:
            A future of `flat`. It fails with the error that a phase raised; then all later calls fail with it, too.
        """
        future: Future[Tensor] = Future(devices=[self.device] if self.device.type == "cuda" else None)
        if self.error is not None:
            future.set_exception(self.error)  # type: ignore[arg-type]
            return future
        if not flat.numel():
            future.set_result(flat)
            return future
        chunks = self.chunks(flat.numel(), flat.element_size())
        remaining = len(chunks)

        def done() -> None:
            nonlocal remaining
            with self._lock:
                remaining -= 1
                if not remaining:
                    future.set_result(flat)

        def failed(error: BaseException) -> None:
            with self._lock:  # several streams may fail at the same time
                self.error = self.error or error
                if not future.done():
                    future.set_exception(error)  # type: ignore[arg-type]

        for i, chunk in enumerate(chunks):
            PhaseRunner(self._phases(flat, chunk, factor, errors[i] if errors else None), done, failed)
            self._num_chunks += 1
        return future

    def chunks(self, num: int, element_size: int) -> list[Chunk]:
        """The chunks into which a tensor is cut, in the order in which they are reduced.

        Args:
            num: elements of the tensor.
            element_size: bytes of an element.
        """
        plan = self.plan
        whole = plan.kind in ("flat", "ring") or not num
        unit = 1 if whole else self._unit()
        length = (
            num if whole or plan.chunk_bytes is None else max(unit, plan.chunk_bytes // element_size // unit * unit)
        )
        starts = list(range(0, num, length))
        is_gloo = self.device.type == "cpu"
        part = length // _FIRST_PARTS // unit * unit
        if plan.kind == "hierarchical" and plan.wire_dtype == "exact" and is_gloo and len(starts) >= _FEWEST_CHUNKS:
            starts[:1] = [part * number for number in range(_FIRST_PARTS)] if part else [0]
        chunks = []
        for start, stop in zip(starts, [*starts[1:], num], strict=True):
            padded = -(-(stop - start) // unit) * unit
            own_start, own_stop = start, start + padded
            if plan.kind == "hierarchical":
                num_own = padded // self.group_size
                own_start = start + self.group_rank * num_own
                own_stop = own_start + num_own
            elif plan.kind == "leader" and not self._is_leader:
                own_stop = start
            chunks.append(Chunk(start, stop, padded, own_start, own_stop))
        return chunks

    def sum_in_group(self, tensor: Tensor) -> None:
        """Replaces `tensor` by its sum over the ranks of this rank's group, where the plan's wire_dtype is int8.

        Collective: every rank of the group must call.
        """
        if self._error_group is not None:
            dist.all_reduce(tensor, group=self._error_group)

    def close(self) -> None:
        """Ends the threads and process groups; later calls of `all_reduce` fail."""
        if self.error is not None:
            for group in self._groups:
                group.abort()  # so that no thread waits forever, or is in a collective when the interpreter exits
        self.error = self.error or RuntimeError("the route is closed")
        for stream in self._streams:
            stream.close(_LAST_JOB_S)
        self._streams.clear()
        while self._groups:
            group = self._groups.pop()
            if dist.is_initialized():  # else they ended with the default group
                with suppress(RuntimeError, ValueError):  # a peer may have exited already
                    dist.destroy_process_group(group)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _join(self, groups: Sequence[Sequence[int]]) -> dist.ProcessGroup | None:
        """The process group for the one of `groups` that holds this rank; None where none does, or it is alone."""
        joined = None
        for ranks in groups:
            if len(ranks) > 1:
                # Created by all ranks, members or not: a group that only its members create gets the name of an
                # earlier, destroyed group, and finds the keys that this one left in the store.
                group: dist.ProcessGroup = dist.new_group(list(ranks), sort_ranks=False)
                if self._rank in ranks:
                    joined = group
                    self._groups.append(group)
        return joined

    def _lane(self, number: int) -> _Lane:
        plan = self.plan
        across = list(zip(*plan.groups, strict=False))  # as many as the smallest group has ranks
        if plan.kind == "leader":
            across = across[:1]
        return _Lane(
            across=self._join(across),
            back=self._join(across) if plan.wire_dtype != "exact" else None,
            outward=self._join(plan.groups),
            across_stream=self._stream(f"across groups {number}"),
            back_stream=self._stream(f"back across groups {number}"),
            outward_stream=self._stream(f"spread within the group {number}"),
        )

    def _stream(self, name: str) -> CommStream:
        self._streams.append(CommStream(self.device, name))
        return self._streams[-1]

    def _unit(self) -> int:
        """The number of elements of which a chunk's length must be a multiple."""
        parts = self.group_size if self.plan.kind == "hierarchical" else 1
        return parts if self.plan.wire_dtype == "exact" else parts * self._num_groups * INT8_BLOCK

    def _phases(self, flat: Tensor, chunk: Chunk, factor: float, errors: Tensor | None) -> Phases:
        if self.plan.kind in ("flat", "ring"):
            yield self._whole_stream
            if factor != 1.0:
                flat.mul_(factor)
            dist.all_reduce(flat, group=self._whole)
            return
        lane = self._lanes[self._num_chunks % len(self._lanes)]
        yield self._inward_stream
        view = flat[chunk.start : chunk.stop]
        padded = view
        if chunk.padded != len(view):
            padded = flat.new_zeros(chunk.padded)
            padded[: len(view)] = view
        own = self._reduce_in_group(padded)
        if own is not None:
            if factor != 1.0:
                own.mul_(factor)
            if self.plan.wire_dtype == "exact":
                yield lane.across_stream
                _outlive_stream(own)
                dist.all_reduce(own, group=lane.across)
            else:
                yield from self._across_quantized(own, errors, lane)
        yield lane.outward_stream
        _outlive_stream(padded)
        self._spread_in_group(padded, own, lane.outward)
        if padded is not view:
            view.copy_(padded[: len(view)])

    def _reduce_in_group(self, chunk: Tensor) -> Tensor | None:
        """The elements of the group's sum that this rank sends across groups; None where it sends nothing."""
        if self._inward is None:
            return chunk
        if self.plan.kind == "leader":
            dist.reduce(chunk, dst=self._leader, group=self._inward)
            return chunk if self._is_leader else None
        if self.device.type == "cuda":
            own = chunk.new_empty(len(chunk) // self.group_size)
            _reduce_scatter(own, chunk, group=self._inward)
            return own
        # gloo's reduce-scatter is an all-reduce, which sends twice as much.
        theirs = torch.empty_like(chunk)
        dist.all_to_all_single(theirs, chunk, group=self._inward)
        return theirs.view(self.group_size, -1).sum(0)

    def _across_quantized(self, own: Tensor, errors: Tensor | None, lane: _Lane) -> Phases:
        """All-reduce between groups: each rank sums one shard of what all have quantized, and quantizes the sum.

        All ranks dequantize the same bytes, and so have the same bits.
        """
        wire_dtype, dtype = self.plan.wire_dtype, own.dtype
        shards = own.view(self._num_groups, -1)
        length = shards.shape[1]
        if errors is not None:
            own += errors
        sent = quantize(shards, wire_dtype)
        if errors is not None:
            torch.sub(own, dequantize(sent, length, dtype, wire_dtype).view(-1), out=errors)
        yield lane.across_stream
        received = torch.empty_like(sent)
        _outlive_stream(sent)
        dist.all_to_all_single(received, sent, group=lane.across)
        yield lane.back_stream
        _outlive_stream(received)
        total = dequantize(received, length, dtype, wire_dtype).sum(0, keepdim=True)
        sent = quantize(total, wire_dtype)
        if errors is not None:
            own_errors = errors.view(self._num_groups, -1)[dist.get_rank(lane.across)]
            own_errors += (total - dequantize(sent, length, dtype, wire_dtype))[0]
            # The sum shows a non-finite gradient; as an error it would make all later gradients non-finite, too.
            torch.nan_to_num_(errors, nan=0.0, posinf=0.0, neginf=0.0)
        _all_gather(received, sent, group=lane.back)
        shards.copy_(dequantize(received, length, dtype, wire_dtype))

    def _spread_in_group(self, chunk: Tensor, own: Tensor | None, group: dist.ProcessGroup | None) -> None:
        if group is None:
            return
        if self.plan.kind == "leader":
            dist.broadcast(chunk, src=self._leader, group=group)
        else:
            assert own is not None
            _outlive_stream(own)
            _all_gather(chunk, own, group=group)


def _outlive_stream(tensor: Tensor) -> None:
    """Keeps the allocator from reusing the tensor's memory before the current stream has used it."""
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
