"""DistributedDataParallel: every process holds the whole module, gradients are averaged."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.nn.parallel import DistributedDataParallel

from trainkit.backend import Backend, num_bytes
from trainkit.comm.cluster import Cluster
from trainkit.comm.feedback import Feedback
from trainkit.comm.hook import Hook
from trainkit.comm.reducer import Choice
from trainkit.errors import UsageError
from trainkit.optim.source import OptimizerSource
from trainkit.precision import Precision
from trainkit.strategy.base import Strategy

_arguments = inspect.signature(DistributedDataParallel.__init__).parameters
# Renamed during torch 2; the old name warns on every use.
_NO_BUFFER_SYNC: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _arguments else "broadcast_buffers": False
}


@dataclass(frozen=True, kw_only=True)
class DDP(Strategy):
    """The module on every process, gradients all-reduced in buckets while the backward pass runs.

    bucket_mb: size of a bucket; null: torch's own, whose first one is small so that reducing begins early.
    find_unused_parameters: for modules of which a forward does not use every parameter. Always on under
        `deterministic`, because without it the first step after a start reduces in another order than later ones;
        torch then warns once that it found none unused, which is as it should be.

    Buffers are equal at the start and not synchronised afterwards; rank 0's are saved.
    """

    name: ClassVar[str] = "ddp"
    bucket_mb: float | None = None
    find_unused_parameters: bool = False

    def check(self, cluster: Cluster, precision: Precision, device: torch.device) -> None:
        """Any number of processes will do; with one there is nothing to reduce."""

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
            return Backend(module, source.make())
        return _DDPBackend(
            module,
            source.make(),
            cluster,
            bucket_mb=self.bucket_mb,
            find_unused_parameters=self.find_unused_parameters or deterministic,
        )


_BUCKET_MB = 25  # torch's own


class _DDPBackend(Backend):
    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        cluster: Cluster,
        *,
        bucket_mb: float | None,
        find_unused_parameters: bool,
    ) -> None:
        super().__init__(module, optimizer)
        self.gradient_divisor = cluster.world_size
        self.find_unused_parameters = find_unused_parameters
        self._choice: Choice | None = None
        self._hook: Hook | None = None
        self._is_chosen = False
        self._bucket_bytes = int((bucket_mb or _BUCKET_MB) * 2**20)
        self.wrapped: DistributedDataParallel | None = DistributedDataParallel(
            module,
            bucket_cap_mb=bucket_mb,
            find_unused_parameters=find_unused_parameters,
            gradient_as_bucket_view=True,
            # Broadcasting buffers in a second forward before the backward would modify what the first one saved.
            **_NO_BUFFER_SYNC,
        )
        self._forward_was_wrapped = False

    def begin(self, last: bool) -> None:
        assert self.wrapped is not None
        self.wrapped.require_backward_grad_sync = last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        assert self.wrapped is not None
        self._forward_was_wrapped = torch.is_grad_enabled() or self._forward_was_wrapped
        return self.wrapped(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool) -> None:
        if last and not self._is_chosen:
            self.reduce_as(None)
        try:
            loss.backward()
        except RuntimeError:
            failure = self._hook.failure() if self._hook is not None else None
            if failure is not None:
                raise failure from failure.__cause__
            raise
        if not last:
            self._forward_was_wrapped = False
            return
        if self._forward_was_wrapped:
            self._require_all_reduced()
        else:
            # DDP reduces only what a forward of its own prepared; a loss made of the raw module alone, such as a
            # gradient penalty, would silently stay local.
            self._all_reduce_gradients()
        self._forward_was_wrapped = False

    def _require_all_reduced(self) -> None:
        unused = [name for name, p in self.trainable.items() if p.grad is None]
        if unused and not self.find_unused_parameters:
            raise UsageError(
                f"the loss does not depend on {len(unused)} of {len(self.trainable)} parameters, the first is "
                f"{unused[0]!r}, so DDP could not reduce the gradients: set strategy.find_unused_parameters=true, or "
                f"requires_grad=False on what is not to be trained"
            )

    def _all_reduce_gradients(self) -> None:
        for p in self.trainable.values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in self.trainable.values() if p.grad is not None]
        for dtype in {gradient.dtype for gradient in gradients}:
            same = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = _flatten_dense_tensors(same)
            dist.all_reduce(flat)
            flat /= self.gradient_divisor
            torch._foreach_copy_(same, list(_unflatten_dense_tensors(flat, same)))

    # -- how gradients are summed ------------------------------------------------------------------------------------

    def reduce_as(self, known: Mapping[str, Any] | None) -> None:
        if self._is_chosen or self.reducer is None:
            return
        assert self.wrapped is not None
        total = sum(num_bytes(p) for p in self.trainable.values())
        names: dict[Tensor, str] = {p: name for name, p in self.trainable.items()}
        self._choice, self._hook = self.reducer.install(self.wrapped, names, min(total, self._bucket_bytes), known)
        self._is_chosen = True

    def choice(self) -> dict[str, Any] | None:
        return None if self._choice is None or self._choice.fingerprint is None else self._choice.to_dict()

    def feedback(self) -> Feedback | None:
        return self._hook.feedback if self._hook is not None else None

    def retire(self) -> None:
        self.wrapped = None
        self._hook = None
