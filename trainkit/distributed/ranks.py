"""Ranks: the processes of a job, and what they tell one another."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainkit.distributed import agent
from trainkit.distributed.cluster import Cluster, join
from trainkit.errors import ConfigError, PeerError, TrainkitError

T = TypeVar("T")
BESIDE = "beside training"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in what an object without a text of its own prints as

# DDP's reducer holds on to its group. If it were the last to do so, the group would end with the interpreter locked,
# and wait for threads of its own that may want that lock to let go of their last tensor. Kept here, it ends unlocked.
_left: list[dist.ProcessGroup | None] = []


class Ranks:
    """This process among those of its job. Making one joins the process group that torchrun describes.

    needs_group: one process alone makes a group too.  Collective: every rank makes one.
    """

    def __init__(self, cluster: Cluster, device: torch.device, *, needs_group: bool = False) -> None:
        self.cluster, self.device = cluster, device
        self._made_group = join(cluster, device, alone=needs_group)
        self._own_groups: list[dist.ProcessGroup] = []
        # Building a cache may take longer than a collective is allowed to.
        self.group = self.new_group()

    def new_group(self, description: str | None = None) -> dist.ProcessGroup | None:
        """A gloo group of all ranks in which one may wait for days; None for one process. Collective.

        description: `BESIDE` for one that threads beside training use.
        """
        if self.world_size == 1:
            return None
        group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(days=7), group_desc=description)
        self._own_groups.append(group)
        return group

    @property
    def rank(self) -> int:
        return self.cluster.rank

    @property
    def world_size(self) -> int:
        return self.cluster.world_size

    @property
    def local_rank(self) -> int:
        return self.cluster.local_rank

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that speaks and writes."""
        return self.cluster.rank == 0

    def all_reduce_sum(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        """The float64 sums of `values` over ranks. Collective: every rank calls, with the same names."""
        total = torch.stack(
            [torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values.values()]
        )
        if self.world_size > 1:
            dist.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def all_gather(self, rows: Tensor, size: int) -> Tensor:
        """Rows of every rank in the order of the global batch. Not differentiable. Collective: every rank must call.

        Args:
            rows: [len(batch), ...], one row a sample of this rank's share.
            size: samples in the global batch: `batch.size`.

        Returns:
            [size, ...], the same on every rank.
        """
        if self.world_size == 1:
            return rows
        longest = -(-size // self.world_size)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        shares = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(shares, padded)
        # Sample i is row i // W of rank i mod W.
        return torch.stack(shares, dim=1).flatten(0, 1)[:size]

    def first_on_host(self, function: Callable[[], T]) -> T:
        """`function()` on every rank: first on local rank 0 of each machine, then on the others. Collective.

        For what one process makes and the others then find, such as a cache. An error of a first one is raised on all.
        """
        if self.group is None:
            return function()
        result, error = None, None
        if self.local_rank == 0:
            try:
                result = function()
            except Exception as caught:
                error = caught
        self.raise_first(error)
        return function() if self.local_rank != 0 else result  # type: ignore[return-value]

    def raise_first(self, error: Exception | None) -> None:
        """Raises the error of the lowest rank that has one on all of them. Collective: every rank calls."""
        if self.group is None:
            if error is not None:
                raise error
            return
        known = error if error is None or isinstance(error, TrainkitError) else None
        told: list[tuple[TrainkitError | None, str | None]] = [(None, None)] * self.world_size
        dist.all_gather_object(told, (known, repr(error) if error else None), group=self.group)
        if error is not None and known is None:
            raise error
        for rank, (theirs, text) in enumerate(told):
            if theirs is not None:
                raise theirs
            if text is not None:
                raise PeerError(f"rank {rank} failed: {text}")

    def broadcast_object(self, value: T) -> T:
        """Rank 0's `value` (anything that pickles) on every rank. Collective."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def all_gather_object(self, value: T) -> list[T]:
        """Every rank's `value` (anything that pickles), in the order of the ranks. Collective."""
        values = [value] * self.world_size
        if self.group is not None:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def require_same(self, given: Mapping[str, Any]) -> None:
        """Raises ConfigError on all ranks where one was given another value than rank 0 for a key: names it and both.

        given: values that are told apart by what they print as.  Collective: every rank calls.
        """
        if self.group is None:
            return
        mine = {key: _ADDRESS.sub("", str(value)) for key, value in given.items()}
        everyone = self.all_gather_object(mine)
        for rank, theirs in enumerate(everyone):
            for key in [*everyone[0], *(key for key in theirs if key not in everyone[0])]:
                first, other = everyone[0].get(key), theirs.get(key)
                if first != other:
                    raise ConfigError(
                        f"ranks disagree: {key}={_or_missing(first)} on rank 0, and {key}={_or_missing(other)} on rank "
                        f"{rank}: start every process with the same arguments and data"
                    )

    def same_as_before(self, name: str, make: Callable[[], str]) -> str:
        """What `make` returns on rank 0; where torchrun starts the job again, what it returned the first time.

        The n-th call of a process with a `name` is about the same thing in every start. What `make` raises is raised
        on all ranks. Collective.
        """
        nth = agent.nth(name)
        known = self.all_gather_object(agent.recall(nth))  # rank 0 may be on a new machine
        before = next((value for value in known if value is not None), None)
        value, error = before or "", None
        if before is None and self.is_main:
            try:
                value = make()
            except Exception as caught:
                error = caught
        self.raise_first(error)
        value = self.broadcast_object(value)
        agent.remember(nth, value)
        return value

    def own_store(self) -> dist.Store | None:
        """A connection, for a thread of this rank, to the store in which the ranks met; None in one process."""
        return dist.distributed_c10d._get_default_store().clone() if self.world_size > 1 else None  # type: ignore[attr-defined]

    def leave(self) -> None:
        """Leaves the process group, if it was joined here; the groups that were made here in any case."""
        while self._own_groups and dist.is_initialized():
            dist.destroy_process_group(self._own_groups.pop())  # each has threads that look for messages all the time
        self.group = None
        if self._made_group and dist.is_initialized():
            _left.append(dist.group.WORLD)
            with suppress(RuntimeError):  # a peer that is gone cannot take its leave
                dist.destroy_process_group()
            self._made_group = False


def _or_missing(value: str | None) -> str:
    return "nothing" if value is None else value
