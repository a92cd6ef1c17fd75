"""What a strategy is: the way one engine's module is spread over processes."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn

from trainkit.backend import Backend
from trainkit.comm.cluster import Cluster


class Strategy(ABC):
    """How modules are spread over the processes of a job; its arguments are those of `conf/strategy/<name>.yaml`."""

    name: ClassVar[str]

    @abstractmethod
    def check(self, cluster: Cluster) -> None:
        """Raises ConfigError when this strategy cannot run on `cluster`."""

    @abstractmethod
    def attach(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, cluster: Cluster, deterministic: bool
    ) -> Backend:
        """Spreads `module` over the processes. Collective: every rank calls."""
