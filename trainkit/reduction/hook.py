"""Hook: the communication hook by which DDP reduces its buckets along a route."""

import socket
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from trainkit.errors import ClusterError
from trainkit.reduction.collectives import Route
from trainkit.reduction.error_feedback import ErrorFeedback


class Hook:
    """Replaces the buckets of one DistributedDataParallel by their means over ranks, as DDP itself does.

    Args:
        route: along which the buckets are reduced.
        names: of the module's parameters, under which int8 error feedback is kept.
        report: see `ErrorFeedback`.
    """

    def __init__(self, route: Route, names: Mapping[Tensor, str], report: Callable[[str], None]) -> None:
        self.route = route
        self.error_feedback = ErrorFeedback(route, report) if route.plan.wire_dtype == "int8" else None
        self._names = names

    def register(self, wrapped: DistributedDataParallel) -> None:
        """Registers this hook; at most one can be registered with a DistributedDataParallel."""
        wrapped.register_comm_hook(self, _reduce)

    def reduce(self, bucket: dist.GradBucket) -> "torch.futures.Future[Tensor]":
        """Starts the all-reduce of a bucket. Collective: every rank must call, with the same buckets in the same order.

        Returns:
            A future of the bucket's buffer, which then holds the mean over ranks.
        """
        flat = bucket.buffer()
        errors: Sequence[Tensor] = ()
        if self.error_feedback is not None:
            sizes = {self._names[p]: p.numel() for p in bucket.parameters()}
            errors = self.error_feedback.errors(bucket.index(), sizes, flat)
        return self.route.all_reduce(flat, factor=1 / self.route.plan.world_size, errors=errors)

    def failure(self) -> BaseException | None:
        """The error that a phase of the route raised on this rank, or None.

        DDP itself reports such an error as a tensor of the wrong type.
        """
        if self.route.error is None or isinstance(self.route.error, (torch.OutOfMemoryError, MemoryError)):
            return self.route.error
        reason = str(self.route.error).strip().splitlines()[0] if str(self.route.error).strip() else "no reason given"
        failure = ClusterError(
            f"rank {dist.get_rank()} on {socket.gethostname()} could not all-reduce gradients "
            f"({self.route.plan.describe()}): {reason}. If a process or a host has failed, see its own log"
        )
        failure.__cause__ = self.route.error
        return failure


def _reduce(hook: Hook, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    return hook.reduce(bucket)
