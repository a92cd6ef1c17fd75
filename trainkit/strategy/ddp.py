"""DistributedDataParallel: every process holds the whole module, gradients are averaged."""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.nn.parallel import DistributedDataParallel

from trainkit.distributed.cluster import Cluster
from trainkit.distributed.shard import broadcast_from_first
from trainkit.engine.backend import Backend
from trainkit.engine.backward import run_backward, timed_backward
from trainkit.engine.gradient_reduction import GradientReduction
from trainkit.engine.sharded_tensors import ShardedTensors, num_bytes
from trainkit.errors import UsageError, require_at_least
from trainkit.optim.source import OptimizerSource
from trainkit.planning.choice import Choice
from trainkit.planning.reduce_plan import Kind
from trainkit.precision import Precision
from trainkit.reduction.error_feedback import ErrorFeedback
from trainkit.reduction.hook import Hook
from trainkit.strategy.base import SMALLEST_BUCKET_MB, Strategy

_arguments = inspect.signature(DistributedDataParallel.__init__).parameters
# Renamed during torch 2; the old name warns on every use.
_NO_BUFFER_SYNC: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _arguments else "broadcast_buffers": False
}


@dataclass(frozen=True, kw_only=True)
class DDP(Strategy):
    """The module on every process; gradients are all-reduced in buckets during the backward pass.

    Buffers are equal at the start; in training each rank has its own, and rank 0's are evaluated and saved.

    Args:
        bucket_cap_mb: MiB of a bucket; null: torch's own, whose first bucket is small so that reducing begins early.
        find_unused_parameters: for modules whose forward pass does not use every parameter. Always on under
            `deterministic`: without it the first step after a start reduces in another order than later ones. torch
            then warns once that it found none unused, which can be ignored.
    """

    name: ClassVar[str] = "ddp"
    own_plan: ClassVar[Kind | None] = None
    bucket_cap_mb: float | None = None
    find_unused_parameters: bool = False

    def __post_init__(self) -> None:
        require_at_least(SMALLEST_BUCKET_MB, "strategy.", bucket_cap_mb=self.bucket_cap_mb)

    def check(self, cluster: Cluster, precision: Precision, device: torch.device) -> None:
        """Accepts any number of processes."""

    def attach(
        self,
        module: nn.Module,
        source: OptimizerSource,
        *,
        cluster: Cluster,
        device: torch.device,
        deterministic: bool,
        blocks: Sequence[type[nn.Module]],
    ) -> Backend:
        if cluster.world_size == 1:
            return Backend(ShardedTensors(module, source.make()))
        return _DDPBackend(
            ShardedTensors(module, source.make()),
            cluster,
            bucket_cap_mb=self.bucket_cap_mb,
            find_unused_parameters=self.find_unused_parameters or deterministic,
        )


_BUCKET_MB = 25  # torch's own


class _DDPBackend(Backend):
    def __init__(
        self,
        tensors: ShardedTensors,
        cluster: Cluster,
        *,
        bucket_cap_mb: float | None,
        find_unused_parameters: bool,
    ) -> None:
        # By bytes: DDP's own way to do it cannot send every dtype over gloo.
        broadcast_from_first([*tensors.module.parameters(), *tensors.module.buffers()])
        self.wrapped: DistributedDataParallel | None = DistributedDataParallel(
            tensors.module,
            init_sync=False,
            bucket_cap_mb=bucket_cap_mb,
            find_unused_parameters=find_unused_parameters,
            gradient_as_bucket_view=True,
            # Broadcasting buffers in a second forward before the backward would modify what the first one saved.
            **_NO_BUFFER_SYNC,
        )
        trained: dict[Tensor, str] = {p: name for name, p in tensors.parameters.items() if p.requires_grad}
        self._buckets = _DDPReduction(self.wrapped, trained, int((bucket_cap_mb or _BUCKET_MB) * 2**20))
        super().__init__(tensors, self._buckets, gradient_divisor=cluster.world_size)
        self.find_unused_parameters = find_unused_parameters
        self._forward_was_wrapped = False
        self._is_first = True  # micro-batch of a step
        self._adds_nothing = self._has_counted = False

    def begin(self, last: bool) -> None:
        assert self.wrapped is not None
        self.wrapped.require_backward_grad_sync = last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        assert self.wrapped is not None
        self._forward_was_wrapped = torch.is_grad_enabled() or self._forward_was_wrapped
        return self.wrapped(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool) -> None:
        if last:
            self._buckets.choose(None)
        before = {name: p.grad for name, p in self.trainable.items()} if last and not self._is_first else {}
        self._has_counted = not self._adds_nothing or (self._has_counted and not self._is_first)
        self._is_first = last
        try:
            if last and (waited := self._buckets.waited) is not None:
                waited(timed_backward(loss))
            else:
                run_backward(loss)
        except RuntimeError:
            failure = self._buckets.failure()
            if failure is not None:
                raise failure from failure.__cause__
            raise
        if not last:
            self._forward_was_wrapped = False
            return
        if self._forward_was_wrapped:
            self._require_all_reduced(before)
        else:
            # DDP reduces only after a forward pass of its own; the gradient of a loss computed with the raw module
            # alone, such as a gradient penalty, would silently stay local.
            began = time.perf_counter()
            self._all_reduce_gradients()
            if self._buckets.waited is not None:
                self._buckets.waited(time.perf_counter() - began)
        self._forward_was_wrapped = False

    def backward_of_nothing(self, loss: Tensor, last: bool) -> None:
        if last and self._forward_was_wrapped and not self.find_unused_parameters:
            if self._has_counted and not self._is_first:
                self._require_used_before()
            # No samples need not reach every parameter, and DDP waits for each.
            loss = _Reach.apply(loss, *self.trainable.values())  # type: ignore[no-untyped-call]
        self._adds_nothing = True
        try:
            super().backward_of_nothing(loss, last)
        finally:
            self._adds_nothing = False

    def _require_used_before(self) -> None:
        """Refuses to give a gradient of zero, on which an optimizer would act, to parameters that were not used."""
        unused = [name for name, p in self.trainable.items() if p.grad is None]
        if unused:
            raise UsageError(
                f"the last micro-batch of a rank holds nothing that counts, and those before it do not depend on "
                f"{len(unused)} of {len(self.trainable)} parameters, the first is {unused[0]!r}: set "
                f"strategy.find_unused_parameters=true, or requires_grad=False on what is not to be trained"
            )

    def _require_all_reduced(self, before: Mapping[str, Tensor | None]) -> None:
        """`before`: gradients of the micro-batches before the last; DDP replaces those that it reduces."""
        if self.find_unused_parameters:
            return
        unused = [name for name, p in self.trainable.items() if p.grad is None or p.grad is before.get(name)]
        if unused:
            where = "loss of the last micro-batch" if before else "loss"
            raise UsageError(
                f"the {where} does not depend on {len(unused)} of {len(self.trainable)} parameters, the first is "
                f"{unused[0]!r}, so DDP could not reduce the gradients: set strategy.find_unused_parameters=true, or "
                f"requires_grad=False on what is not to be trained"
            )

    def _all_reduce_gradients(self) -> None:
        trained = list(self.trainable.values())
        used = torch.tensor([p.grad is not None for p in trained], dtype=trained[0].dtype, device=trained[0].device)
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [used, *(p.grad for p in trained if p.grad is not None)]
        for dtype in {gradient.dtype for gradient in gradients}:
            same = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = _flatten_dense_tensors(same)
            dist.all_reduce(flat)
            flat /= self.gradient_divisor
            torch._foreach_copy_(same, list(_unflatten_dense_tensors(flat, same)))
        for p, is_used in zip(trained, used.tolist(), strict=True):
            if not is_used:  # on no rank
                p.grad = None

    def _follow(self, changed: list[str]) -> None:
        raise UsageError(
            f"requires_grad of {changed[0]!r} was switched after setup, and DDP reduces the gradients of the "
            f"parameters that were trained then: make the engine again, engine = runtime.setup(module, optimizer, "
            f"inherit=engine)"
        )

    def retire(self) -> None:
        self.wrapped = None
        self._buckets.retire()


class _DDPReduction(GradientReduction):
    """The all-reduce of DDP's buckets, by DDP itself or along a plan that the reducer has chosen."""

    def __init__(self, wrapped: DistributedDataParallel, trained: Mapping[Tensor, str], bucket_bytes: int) -> None:
        self._wrapped: DistributedDataParallel | None = wrapped
        self._trained, self._bucket_bytes = dict(trained), bucket_bytes
        self._choice: Choice | None = None
        self._hook: Hook | None = None
        self._is_chosen = False

    @property
    def waited(self) -> Callable[[float], None] | None:
        """See Reducer."""
        return self.reducer.waited if self.reducer is not None else None

    def choose(self, known: Mapping[str, Any] | None) -> None:
        if self._is_chosen or self.reducer is None:
            return
        assert self._wrapped is not None
        num_largest = min(sum(num_bytes(p) for p in self._trained), self._bucket_bytes)
        self._choice, self._hook = self.reducer.install(self._wrapped, self._trained, num_largest, known)
        self._is_chosen = True

    def choice(self) -> dict[str, Any] | None:
        return None if self._choice is None or self._choice.fingerprint is None else self._choice.to_dict()

    def error_feedback(self) -> ErrorFeedback | None:
        return self._hook.error_feedback if self._hook is not None else None

    def failure(self) -> BaseException | None:
        """The error that occurred while a bucket was reduced, if any."""
        return self._hook.failure() if self._hook is not None else None

    def retire(self) -> None:
        """Removes what refers to the module."""
        self._wrapped = self._hook = None
        self._trained = {}


class _Reach(torch.autograd.Function):
    """The loss, made to depend on `parameters` without a gradient, so that DDP does not wait for them."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.num_parameters = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (gradients[0], *[None] * ctx.num_parameters)
