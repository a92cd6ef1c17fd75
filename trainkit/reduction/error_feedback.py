"""Feedback: what a lossy leg has left out of gradients, kept to be sent with the next ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainkit.distributed.shard import Shard
from trainkit.reduction.collectives import Route, Span


@dataclass(frozen=True)
class _Layout:
    """How a bucket was made up when its errors were written: parameters one after another, cut into spans."""

    sizes: Mapping[str, int]
    spans: Sequence[Span]
    errors: Sequence[Tensor]


class Feedback:
    """By parameter, what the ranks behind one leg between groups have left out so far.

    Within a group every element is one rank's. Where it lies changes with DDP's buckets; then, and for a checkpoint,
    each group brings its errors together by parameter, and takes them apart again. A step that is skipped takes with it
    what it had sent of them.

    report: is told where a checkpoint's errors cannot be taken over.
    """

    def __init__(self, route: Route, report: Callable[[str], None] = lambda text: None) -> None:
        self._route, self._report = route, report
        self._layouts: dict[int, _Layout] = {}  # by number of bucket
        self._carried: dict[str, Tensor] = {}  # whole, flat, of this rank's group: those that are in no bucket now

    def of(self, number: int, sizes: Mapping[str, int], like: Tensor) -> Sequence[Tensor]:
        """The errors for `Route.all_reduce` of bucket `number`, which `like` holds, made up of parameters by `sizes`.

        Collective in the group where the bucket is not the one that it was: buckets come in rising order.
        """
        layout = self._layouts.get(number)
        if layout is None or layout.sizes != sizes:
            self._bring_together(number)
            layout = self._layouts[number] = self._lay(sizes, like)
        return layout.errors

    def rescale(self, ratio: float) -> None:
        """For gradients that come `ratio` times as large from now on."""
        for layout in self._layouts.values():
            torch._foreach_mul_(list(layout.errors), ratio)
        for tensor in self._carried.values():
            tensor.mul_(ratio)

    def shards(self) -> dict[str, Shard]:
        """By parameter, copies of this rank's part of the errors of all groups, [groups, elements]. Collective."""
        parts = {}
        for errors in (self._carried, *(self._whole(self._layouts[number]) for number in sorted(self._layouts))):
            for name, whole in errors.items():
                parts[name] = self._shard(len(whole), whole[self._range(len(whole))].clone())
        return parts

    def places(self, saved: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Shard]:
        """Where this rank's part of what a checkpoint holds can be read to; {}: it has another number of groups."""
        num_groups = len(self._route.plan.groups)
        others = {shape[0] for shape, _ in saved.values()} - {num_groups}
        if others:
            self._report(
                f"what int8 had left out of gradients begins anew: the checkpoint has it of {others.pop()} groups of "
                f"ranks, here are {num_groups}"
            )
            return {}
        places = {}
        for name, (shape, dtype) in saved.items():
            part = self._range(shape[1])
            local = torch.zeros(part.stop - part.start, dtype=dtype, device=self._route.device)
            places[name] = self._shard(shape[1], local)
        return places

    def load(self, shards: Mapping[str, Shard]) -> None:
        """Takes over what was read to `places`. Collective in the group."""
        self._layouts.clear()
        self._carried = {}
        for name, shard in shards.items():
            whole = torch.zeros(shard.shape[1], dtype=shard.local.dtype, device=shard.local.device)
            whole[self._range(len(whole))] = shard.local
            self._route.sum_in_group(whole)
            self._carried[name] = whole

    def inherit(self, old: "Feedback", sizes: Mapping[str, int]) -> None:
        """Takes over the errors of parameters that have these `sizes` there too. Collective in the group.

        None where the groups are others, which is reported: each has what it left out itself.
        """
        if old._route.plan.groups != self._route.plan.groups:
            self._report("what int8 had left out of gradients begins anew: ranks are in other groups now")
            return
        old._bring_together(0)
        self._carried = {name: t for name, t in old._carried.items() if sizes.get(name) == len(t)}

    # -- inside ------------------------------------------------------------------------------------------------------

    def _lay(self, sizes: Mapping[str, int], like: Tensor) -> _Layout:
        spans = self._route.spans(like.numel(), like.element_size())
        errors = [like.new_zeros(span.high - span.low) for span in spans]
        start = 0
        for name, size in sizes.items():
            known = self._carried.pop(name, None)
            for span, part in zip(spans, errors, strict=True):
                low, high = max(start, span.low), min(start + size, span.high)
                if known is not None and low < high:
                    part[low - span.low : high - span.low] = known[low - start : high - start]
            start += size
        return _Layout(dict(sizes), spans, errors)

    def _bring_together(self, first: int) -> None:
        """Makes the errors of buckets from number `first` on whole in every rank of the group, by parameter."""
        for number in sorted(number for number in self._layouts if number >= first):
            self._carried.update(self._whole(self._layouts.pop(number)))

    def _whole(self, layout: _Layout) -> dict[str, Tensor]:
        """By parameter, flat, the errors of this rank's group. Collective in the group."""
        num = sum(layout.sizes.values())
        flat = layout.errors[0].new_zeros(num)
        for span, part in zip(layout.spans, layout.errors, strict=True):
            high = min(span.high, num)
            if span.low < high:
                flat[span.low : high] = part[: high - span.low]
        self._route.sum_in_group(flat)
        return dict(zip(layout.sizes, flat.split(list(layout.sizes.values())), strict=True))

    def _range(self, num: int) -> slice:
        """Of `num` elements, those that this rank brings to a checkpoint."""
        place, size = self._route.place, self._route.group_size
        return slice(num * place // size, num * (place + 1) // size)

    def _shard(self, num: int, local: Tensor) -> Shard:
        start = self._route.group_number * num + self._range(num).start
        return Shard(local, start, torch.Size((len(self._route.plan.groups), num)), dist.group.WORLD)
