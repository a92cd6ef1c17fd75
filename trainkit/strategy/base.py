"""What a strategy is: the way one engine's module is spread over processes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from trainkit.distributed.cluster import Cluster
from trainkit.engine.backend import Backend
from trainkit.memory.memory import Memory
from trainkit.optim.source import OptimizerSource
from trainkit.precision import Precision

SMALLEST_BUCKET_MB = 1e-4
"""Of messages; torch counts in whole bytes, and a bucket of none never fills."""


class Strategy(ABC):
    """How modules are spread over the processes of a job; its arguments are those of `conf/strategy/<name>.yaml`."""

    name: ClassVar[str]
    needs_group: ClassVar[bool] = False
    """Whether one process alone needs a process group too."""

    @abstractmethod
    def check(self, cluster: Cluster, precision: Precision, device: torch.device) -> None:
        """Raises ConfigError when this strategy cannot run there, before anything is started."""

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
        """Spreads `module` over the processes, and makes its optimizer. Collective: every rank calls.

        blocks: classes of the repeated parts of which the module is made, for strategies that treat each by itself.
        """

    def predict(
        self, trained: Sequence[int], frozen: Sequence[int], state_tensors: int | None, cluster: Cluster
    ) -> Memory:
        """What one rank holds of float32 parameters of these sizes, padding left out; state_tensors: see `memory`."""
        return float32_memory(sum(trained) + sum(frozen), sum(trained), sum(trained), state_tensors)

    def layout(self, cluster: Cluster) -> str:
        """What the processes are to one another, in words, for the start of a run."""
        return f"{cluster.world_size} x replicate"


def float32_memory(parameters: int, gradients: int, optimized: int, state_tensors: int | None) -> Memory:
    """Of so many elements, `state_tensors` of optimizer state for each that is optimized here."""
    return Memory(4 * parameters, 4 * gradients, None if state_tensors is None else 4 * optimized * state_tensors)
