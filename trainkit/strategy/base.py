"""Strategy: how the parameters, gradients and optimizer state of a module are distributed over processes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from trainkit.distributed.cluster import Cluster
from trainkit.engine.backend import Backend
from trainkit.memory.memory import Memory
from trainkit.optim.source import OptimizerSource
from trainkit.planning.reduce_plan import Kind
from trainkit.precision import Precision

SMALLEST_BUCKET_MB = 1e-4
"""The smallest size of a message; torch counts in whole bytes, and a bucket of 0 bytes never fills."""


class Strategy(ABC):
    """How modules are distributed over the processes of a job; base class of your own, too.

    The arguments of a strategy are the keys of `conf/strategy/<name>.yaml`.
    """

    name: ClassVar[str]
    needs_group: ClassVar[bool] = False
    """Whether a process group is needed even with one process."""
    own_plan: ClassVar[Kind | None] = "flat"
    """The plan by which it reduces gradients itself, whatever Comm says; None: it follows Comm."""

    @abstractmethod
    def check(self, cluster: Cluster, precision: Precision, device: torch.device) -> None:
        """Checks that this strategy can run, before anything is started.

        Args:
            cluster: the processes of the job.
            precision: that was asked for.
            device: of this process.

        Raises:
            ConfigError: where it cannot.
        """

    @abstractmethod
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
        """Distributes `module` over the processes, and makes its optimizer. Collective: every rank must call.

        Args:
            module: on its device and in its dtype.
            source: makes the optimizer.
            cluster: the processes of the job.
            device: of this process.
            deterministic: whether repeated runs must give the same bits.
            blocks: classes of the module's repeated parts, for strategies that shard each by itself.

        Returns:
            What the Engine drives.

        Raises:
            ConfigError: for a module or an optimizer that the strategy cannot run.
        """

    @property
    def traffic(self) -> float:
        """The bytes that a step sends, as a multiple of an all-reduce of all gradients."""
        return 1.0

    def predict(
        self, trained: Sequence[int], frozen: Sequence[int], state_tensors: int | None, cluster: Cluster
    ) -> Memory:
        """The memory that one rank holds, without padding.

        Args:
            trained: elements of each trained float32 parameter.
            frozen: elements of the others.
            state_tensors: tensors of optimizer state for each parameter; None: not known.
            cluster: the processes of the job.
        """
        return float32_memory(sum(trained) + sum(frozen), sum(trained), sum(trained), state_tensors)

    def layout(self, cluster: Cluster) -> str:
        """How the processes share the work, such as `4 x replicate`, for the log."""
        return f"{cluster.world_size} x replicate"


def float32_memory(parameters: int, gradients: int, optimized: int, state_tensors: int | None) -> Memory:
    """The bytes of float32 tensors.

    Args:
        parameters: elements.
        gradients: elements.
        optimized: elements of parameters that this rank's optimizer updates.
        state_tensors: tensors of optimizer state for each parameter; None: not known.
    """
    return Memory(4 * parameters, 4 * gradients, None if state_tensors is None else 4 * optimized * state_tensors)
