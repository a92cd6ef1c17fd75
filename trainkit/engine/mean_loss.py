"""MeanLoss: the weighted mean of a step's losses over ranks and micro-batches."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from trainkit.data.clock import Clock
from trainkit.distributed.cluster import Cluster
from trainkit.engine.backend import Backend


class MeanLoss:
    """Collects the losses of a step's micro-batches, and reduces them with their weights over ranks.

    Sums of weights, weighted losses and what the backend adds travel in one small all-reduce.

    Args:
        backend: of the engine.
        clock: the position in the data.
        cluster: the processes that the mean is over.
    """

    own_losses: list[Tensor]
    """[] each, the losses of this rank's micro-batches."""
    _loss: Tensor | None
    _sums: Tensor | None
    _work: dist.Work | None

    def __init__(self, backend: Backend, clock: Clock, cluster: Cluster) -> None:
        self._backend, self._clock, self._is_distributed = backend, clock, cluster.world_size > 1
        self.begin()

    def begin(self) -> None:
        """Begins a step."""
        self.own_losses = []
        self._loss = self._sums = self._work = None
        self._divisor = 1.0

    def take(self, loss: Tensor) -> None:
        """Takes the only loss of the step, of one process with one micro-batch: it is the mean already."""
        self._loss = loss
        self.own_losses.append(loss)

    def weigh(self, loss: Tensor, weight: Tensor | float, *, is_last: bool) -> Tensor:
        """Adds the loss of a micro-batch; the last one starts the all-reduce.

        Args:
            loss: [], a mean over `weight` items.
            weight: the number of items.
            is_last: whether this is the last micro-batch of the step.

        Returns:
            The loss whose gradients are to be summed over micro-batches and ranks.
        """
        weights = torch.as_tensor(weight, dtype=torch.float64, device=loss.device).detach()
        # A mean over no items is 0/0: it must add nothing, not a NaN.
        loss = torch.where(weights > 0, loss, torch.zeros((), dtype=loss.dtype, device=loss.device))
        # A fixed power of two keeps the products near the size of a mean's, so that fp16 gradients do not overflow.
        batch = self._clock.batch
        self._divisor = 2.0 ** round(math.log2(batch.size)) if batch is not None else 1.0
        self.own_losses.append(loss.detach())
        sums = torch.stack((weights, weights * loss.detach().double()))
        self._sums = sums if self._sums is None else self._sums + sums
        if is_last and self._is_distributed and not self._backend.adds_to_sums:
            self._work = dist.all_reduce(self._sums, async_op=True)
        return loss * (weights / self._divisor).to(loss.dtype)

    def totals(self) -> tuple[Tensor, Tensor | float, Tensor | None]:
        """Ends the step. Collective where there are several ranks.

        Returns:
            The mean loss; the factor that makes the reduced gradients those of that mean; and the sum over ranks of
            what the backend adds, None where it adds nothing.
        """
        own = self._backend.own_sums()
        if self._sums is None:
            assert self._loss is not None
            return self._loss, 1.0, own
        sums = self._sums
        if own is not None:
            sums = torch.cat((sums, own.to(sums)))
            if self._is_distributed:
                dist.all_reduce(sums)
        elif self._work is not None:
            self._work.wait()
        weight, weighted_loss = sums[:2]
        some = weight > 0
        factor = torch.where(some, self._divisor * self._backend.gradient_divisor / weight, 0.0)
        return torch.where(some, weighted_loss / weight, 0.0), factor, sums[2:] if own is not None else None
