"""Ranks: the processes of a job and their collectives."""

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainkit.cache import asked_since
from trainkit.distributed import agent
from trainkit.distributed.cluster import Cluster, join
from trainkit.errors import ConfigError, PeerError, TrainkitError

T = TypeVar("T")
BESIDE = "beside training"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the default repr of an object

# DDP's reducer holds a reference to its group. If it were the last one, the group's destructor would run with the GIL
# held, and wait for threads that need the GIL to free their last tensor. With a reference here it runs without.
_left: list[dist.ProcessGroup | None] = []


class Ranks:
    """The processes of a job. Collective: every rank must create one, which joins the process group of the launcher.

    Args:
        cluster: the rank of this process and the size of the job.
        device: of this process; reductions of numbers run there.
        needs_group: whether one process initializes a process group, too.

    Raises:
        ClusterError: where the processes cannot reach each other.
    """

    def __init__(self, cluster: Cluster, device: torch.device, *, needs_group: bool = False) -> None:
        self.cluster, self.device = cluster, device
        self._made_group = join(cluster, device, alone=needs_group)
        self._own_groups: list[dist.ProcessGroup] = []
        # Of its own: building a cache may take longer than the timeout of the default group.
        self.group = self.new_group()

    def require_group(self) -> None:
        """Initializes a process group for one process, too, where there is none."""
        if not dist.is_initialized():
            self._made_group = join(self.cluster, self.device, alone=True)

    def new_group(self, description: str | None = None) -> dist.ProcessGroup | None:
        """Creates a gloo group of all ranks with a timeout of 7 days. Collective: every rank must call.

        Args:
            description: `BESIDE` for a group that threads use beside training.

        Returns:
            The group; None for one process.
        """
        if self.world_size == 1:
            return None
        group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(days=7), group_desc=description)
        self._own_groups.append(group)
        return group

    @property
    def rank(self) -> int:
        """The rank of this process, from 0 to `world_size` - 1."""
        return self.cluster.rank

    @property
    def world_size(self) -> int:
        """The number of processes of the job."""
        return self.cluster.world_size

    @property
    def local_rank(self) -> int:
        """The rank of this process among those of its host."""
        return self.cluster.local_rank

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints messages and writes files."""
        return self.cluster.rank == 0

    def all_reduce_sum(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Sums numbers over ranks in float64. Collective: every rank must call, with the same names.

        Args:
            values: numbers or scalar tensors, by name.

        Returns:
            The sums, by name, the same on every rank.
        """
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
        """Calls `function` on local rank 0 of each host, then on the other ranks. Collective: every rank must call.

        It is meant for something that one process creates and the others then find, such as a cache. What it looked at,
        the others do not look at again; see `asked_since`.

        Args:
            function: called once on each rank.

        Returns:
            Its result on this rank.

        Raises:
            Exception: the error of a local rank 0, on all ranks; see `raise_first`.
        """
        if self.group is None:
            return function()
        result, error, moment = None, None, time.monotonic()
        dist.barrier(group=self.group)  # so that what local rank 0 looks at, it looks at after every rank has asked
        with asked_since(moment):
            if self.local_rank == 0:
                try:
                    result = function()
                except Exception as caught:
                    error = caught
            self.raise_first(error)
            return function() if self.local_rank != 0 else result  # type: ignore[return-value]

    def raise_first(self, error: Exception | None) -> None:
        """Raises the error of the lowest rank that has one, on all ranks. Collective: every rank must call.

        Args:
            error: of this rank; None: it has none.

        Raises:
            TrainkitError: the error of another rank.
            PeerError: in place of an error of another rank that is no TrainkitError.
            Exception: an error of this rank that is no TrainkitError.
        """
        if self.group is None:
            if error is not None:
                raise error
            return
        known = error if error is None or isinstance(error, TrainkitError) else None
        errors: list[tuple[TrainkitError | None, str | None]] = [(None, None)] * self.world_size
        dist.all_gather_object(errors, (known, repr(error) if error else None), group=self.group)
        if error is not None and known is None:
            raise error
        for rank, (theirs, text) in enumerate(errors):
            if theirs is not None:
                raise theirs
            if text is not None:
                raise PeerError(f"rank {rank} failed: {text}")

    def broadcast_object(self, value: T) -> T:
        """Sends the value of rank 0 to all ranks. Collective: every rank must call.

        Args:
            value: anything that can be pickled; that of other ranks is ignored.

        Returns:
            The value of rank 0.
        """
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def all_gather_object(self, value: T) -> list[T]:
        """Gathers the values of all ranks. Collective: every rank must call.

        Args:
            value: anything that can be pickled.

        Returns:
            The value of each rank, in their order.
        """
        values = [value] * self.world_size
        if self.group is not None:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def require_same(self, given: Mapping[str, Any]) -> None:
        """Checks that all ranks have the same values. Collective: every rank must call.

        Args:
            given: values by name; they are compared as text.

        Raises:
            ConfigError: on all ranks, with the name and both values, where one differs from that of rank 0.
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
        """Calls `make` on rank 0 in the first start of a job, and returns that value in later ones. Collective.

        Args:
            name: the n-th call with a name returns the same value in every start of the job by torchrun.
            make: called on rank 0 in the first start.

        Returns:
            The value, the same on all ranks.

        Raises:
            Exception: what `make` raised, on all ranks.
        """
        nth = agent.nth(name)
        known = self.all_gather_object(agent.recall(nth))  # rank 0 may be on another machine now
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
        """A new connection to the store of the default group, for a thread of this rank; None for one process."""
        return dist.distributed_c10d._get_default_store().clone() if self.world_size > 1 else None  # type: ignore[attr-defined]

    def leave(self) -> None:
        """Destroys the groups that were created here, and the default process group if it was initialized here."""
        while self._own_groups and dist.is_initialized():
            dist.destroy_process_group(self._own_groups.pop())  # each has threads that poll for messages
        self.group = None
        if self._made_group and dist.is_initialized():
            _left.append(dist.group.WORLD)
            with suppress(RuntimeError):  # a peer may have exited already
                dist.destroy_process_group()
            self._made_group = False


def _or_missing(value: str | None) -> str:
    return "nothing" if value is None else value
