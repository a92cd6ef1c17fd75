"""Hook: DDP's buckets go along a route."""

import socket
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from trainkit.errors import ClusterError
from trainkit.reduction.collectives import Route
from trainkit.reduction.error_feedback import Feedback


class Hook:
    """Reduces the buckets of one DistributedDataParallel along `route`, as means over ranks, as DDP itself does.

    names: of the module's parameters, by which errors of an int8 leg are kept.  report: see Feedback.
    """

    def __init__(self, route: Route, names: Mapping[Tensor, str], report: Callable[[str], None]) -> None:
        self.route = route
        self.feedback = Feedback(route, report) if route.plan.format == "int8" else None
        self._names = names

    def register(self, wrapped: DistributedDataParallel) -> None:
        wrapped.register_comm_hook(self, _reduce)

    def reduce(self, bucket: dist.GradBucket) -> "torch.futures.Future[Tensor]":
        """Collective: the buckets of all ranks have the same parameters, and come in the same order."""
        flat = bucket.buffer()
        errors: Sequence[Tensor] = ()
        if self.feedback is not None:
            sizes = {self._names[p]: p.numel() for p in bucket.parameters()}
            errors = self.feedback.of(bucket.index(), sizes, flat)
        return self.route.all_reduce(flat, factor=1 / self.route.plan.world_size, errors=errors)

    def failure(self) -> BaseException | None:
        """What a leg of the route has raised, in words; torch takes it for a tensor, and says so."""
        if self.route.error is None or isinstance(self.route.error, (torch.OutOfMemoryError, MemoryError)):
            return self.route.error
        reason = str(self.route.error).strip().splitlines()[0] if str(self.route.error).strip() else "no reason given"
        failure = ClusterError(
            f"rank {dist.get_rank()} on {socket.gethostname()} could not sum gradients ({self.route.plan.describe()}): "
            f"{reason}. If a process or a host is gone, its own log says why"
        )
        failure.__cause__ = self.route.error
        return failure


def _reduce(hook: Hook, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    return hook.reduce(bucket)
