"""ErrorFeedback: the int8 quantization error of gradients, which is carried into the next step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainkit.distributed.shard import Shard
from trainkit.reduction.collectives import Chunk, Route


@dataclass(frozen=True)
class _Layout:
    """The parameters of a bucket, one after another, and the chunks into which it was cut, with their errors."""

    sizes: Mapping[str, int]
    chunks: Sequence[Chunk]
    errors: Sequence[Tensor]


class ErrorFeedback:
    """The quantization errors of one DistributedDataParallel, by parameter.

    Within a group, each element's error is kept by one rank. Which one changes when DDP rebuilds its buckets; then, and
    for a checkpoint, the ranks of a group exchange their errors by parameter. A skipped step loses the errors that it
    had sent.

    Args:
        route: along which gradients are reduced.
        report: called with a message where the errors of a checkpoint cannot be restored.
    """

    def __init__(self, route: Route, report: Callable[[str], None] = lambda text: None) -> None:
        self._route, self._report = route, report
        self._layouts: dict[int, _Layout] = {}  # by number of bucket
        self._carried: dict[
            str, Tensor
        ] = {}  # full, 1-d, of this rank's group: of parameters that are in no bucket at present

    def errors(self, number: int, sizes: Mapping[str, int], like: Tensor) -> Sequence[Tensor]:
        """The errors of a bucket, for `Route.all_reduce`.

        Collective in the group where the bucket has changed: buckets must come in rising order.

        Args:
            number: of the bucket.
            sizes: elements of each of its parameters, in their order.
            like: [N], the bucket.

        Returns:
            For each chunk of the bucket, [num_own] errors.
        """
        layout = self._layouts.get(number)
        if layout is None or layout.sizes != sizes:
            self._gather_from(number)
            layout = self._layouts[number] = self._layout(sizes, like)
        return layout.errors

    def rescale(self, ratio: float) -> None:
        """Multiplies all errors by `ratio`, as the loss scale was."""
        for layout in self._layouts.values():
            torch._foreach_mul_(list(layout.errors), ratio)
        for tensor in self._carried.values():
            tensor.mul_(ratio)

    def shards(self) -> dict[str, Shard]:
        """The errors for a checkpoint. Collective: every rank must call.

        Returns:
            By parameter, this rank's shard, a copy, of a tensor [groups, elements] of the errors of all groups.
        """
        shards = {}
        for errors in (self._carried, *(self._gathered(self._layouts[number]) for number in sorted(self._layouts))):
            for name, full in errors.items():
                shards[name] = self._shard(len(full), full[self._range(len(full))].clone())
        return shards

    def empty_shards(self, saved: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Shard]:
        """Shards of zeros into which the errors of a checkpoint can be read.

        Args:
            saved: shape and dtype of each tensor of the checkpoint, by parameter.

        Returns:
            As `shards`; empty where the checkpoint has another number of groups, which is reported.
        """
        num_groups = len(self._route.plan.groups)
        others = {shape[0] for shape, _ in saved.values()} - {num_groups}
        if others:
            self._report(
                f"int8 error feedback restarts from zero: the checkpoint holds the errors of {others.pop()} groups of "
                f"ranks, this job has {num_groups}"
            )
            return {}
        shards = {}
        for name, (shape, dtype) in saved.items():
            part = self._range(shape[1])
            local = torch.zeros(part.stop - part.start, dtype=dtype, device=self._route.device)
            shards[name] = self._shard(shape[1], local)
        return shards

    def load(self, shards: Mapping[str, Shard]) -> None:
        """Replaces the errors by those that were read into `empty_shards`. Collective in the group."""
        self._layouts.clear()
        self._carried = {}
        for name, shard in shards.items():
            full = torch.zeros(shard.shape[1], dtype=shard.local.dtype, device=shard.local.device)
            full[self._range(len(full))] = shard.local
            self._route.sum_in_group(full)
            self._carried[name] = full

    def inherit(self, old: "ErrorFeedback", sizes: Mapping[str, int]) -> None:
        """Takes over the errors of another engine. Collective in the group.

        Where the groups of ranks differ, all errors are dropped, which is reported.

        Args:
            old: whose errors are taken over; it must not be used afterwards.
            sizes: elements by parameter; a parameter that has another size in `old` starts from zero.
        """
        if old._route.plan.groups != self._route.plan.groups:
            self._report("int8 error feedback restarts from zero: the groups of ranks have changed")
            return
        old._gather_from(0)
        self._carried = {name: t for name, t in old._carried.items() if sizes.get(name) == len(t)}

    # -- inside ------------------------------------------------------------------------------------------------------

    def _layout(self, sizes: Mapping[str, int], like: Tensor) -> _Layout:
        chunks = self._route.chunks(like.numel(), like.element_size())
        errors = [like.new_zeros(chunk.num_own) for chunk in chunks]
        start = 0
        for name, size in sizes.items():
            known = self._carried.pop(name, None)
            for chunk, own in zip(chunks, errors, strict=True):
                low, high = max(start, chunk.own_start), min(start + size, chunk.own_stop)
                if known is not None and low < high:
                    own[low - chunk.own_start : high - chunk.own_start] = known[low - start : high - start]
            start += size
        return _Layout(dict(sizes), chunks, errors)

    def _gather_from(self, first: int) -> None:
        """Replaces the errors of the buckets from number `first` on by full tensors, by parameter."""
        for number in sorted(number for number in self._layouts if number >= first):
            self._carried.update(self._gathered(self._layouts.pop(number)))

    def _gathered(self, layout: _Layout) -> dict[str, Tensor]:
        """The errors of this rank's group, full and 1-d, by parameter. Collective in the group."""
        num = sum(layout.sizes.values())
        flat = layout.errors[0].new_zeros(num)
        for chunk, own in zip(layout.chunks, layout.errors, strict=True):
            stop = min(chunk.own_stop, num)
            if chunk.own_start < stop:
                flat[chunk.own_start : stop] = own[: stop - chunk.own_start]
        self._route.sum_in_group(flat)
        return dict(zip(layout.sizes, flat.split(list(layout.sizes.values())), strict=True))

    def _range(self, num: int) -> slice:
        """Of `num` elements, those that this rank writes into a checkpoint."""
        rank, size = self._route.group_rank, self._route.group_size
        return slice(num * rank // size, num * (rank + 1) // size)

    def _shard(self, num: int, local: Tensor) -> Shard:
        start = self._route.group_index * num + self._range(num).start
        return Shard(local, start, torch.Size((len(self._route.plan.groups), num)), dist.group.WORLD)
