"""Strategies: how modules are distributed over the processes of a job, and the classes that your own needs."""

import sys
from typing import TYPE_CHECKING, Literal

from trainkit.errors import ConfigError, nearest
from trainkit.lazy import exports
from trainkit.strategy.base import Strategy

if TYPE_CHECKING:
    from trainkit.distributed.cluster import Cluster
    from trainkit.engine.backend import Backend
    from trainkit.engine.gradient_reduction import GradientReduction
    from trainkit.engine.sharded_tensors import ShardedTensors
    from trainkit.memory.memory import Memory
    from trainkit.optim.source import OptimizerSource
    from trainkit.strategy.ddp import DDP
    from trainkit.strategy.fsdp import FSDP, HSDP
    from trainkit.strategy.single import Single
    from trainkit.strategy.zero import Zero1, Zero2, Zero3

_MODULES = {
    "Single": "trainkit.strategy.single",
    "DDP": "trainkit.strategy.ddp",
    "FSDP": "trainkit.strategy.fsdp",
    "HSDP": "trainkit.strategy.fsdp",
    "Zero1": "trainkit.strategy.zero",
    "Zero2": "trainkit.strategy.zero",
    "Zero3": "trainkit.strategy.zero",
}
_PARTS = {
    "Backend": "trainkit.engine.backend",
    "Cluster": "trainkit.distributed.cluster",
    "GradientReduction": "trainkit.engine.gradient_reduction",
    "Memory": "trainkit.memory.memory",
    "OptimizerSource": "trainkit.optim.source",
    "ShardedTensors": "trainkit.engine.sharded_tensors",
}
StrategyName = Literal["single", "ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3"]
STRATEGIES = {name.lower(): name for name in _MODULES}

__all__ = [
    "DDP",
    "FSDP",
    "HSDP",
    "STRATEGIES",
    "Backend",
    "Cluster",
    "GradientReduction",
    "Memory",
    "OptimizerSource",
    "ShardedTensors",
    "Single",
    "Strategy",
    "StrategyName",
    "Zero1",
    "Zero2",
    "Zero3",
    "by_name",
]


def by_name(name: str) -> Strategy:
    """The strategy called `name`, with its default arguments.

    Raises:
        ConfigError: where there is none; it names the nearest.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"strategy={name!r}: must be one of {', '.join(STRATEGIES)}.{nearest(name, STRATEGIES)}")
    strategy: Strategy = getattr(sys.modules[__name__], STRATEGIES[name])()
    return strategy


if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = exports(__name__, {**_MODULES, **_PARTS})
