"""One process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from trainkit.distributed.cluster import Cluster
from trainkit.engine.backend import Backend
from trainkit.engine.sharded_tensors import ShardedTensors
from trainkit.errors import ConfigError
from trainkit.optim.source import OptimizerSource
from trainkit.planning.reduce_plan import Kind
from trainkit.precision import Precision
from trainkit.strategy.base import Strategy


@dataclass(frozen=True, kw_only=True)
class Single(Strategy):
    """The module unchanged, in a job of one process."""

    name: ClassVar[str] = "single"
    own_plan: ClassVar[Kind | None] = None

    def check(self, cluster: Cluster, precision: Precision, device: torch.device) -> None:
        if cluster.world_size > 1:
            raise ConfigError(
                f"strategy=single runs one process, and this job has {cluster.world_size}: "
                f"use strategy=ddp, or start with --nproc-per-node=1"
            )

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
        return Backend(ShardedTensors(module, source.make()))
