"""Strategies by name: how modules are distributed over the processes of a job."""

import sys
from typing import TYPE_CHECKING, Literal

from trainkit.errors import ConfigError, nearest
from trainkit.lazy import exports
from trainkit.strategy.base import Strategy

if TYPE_CHECKING:
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
StrategyName = Literal["single", "ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3"]
STRATEGIES = {name.lower(): name for name in _MODULES}

__all__ = [
    "DDP",
    "FSDP",
    "HSDP",
    "STRATEGIES",
    "Single",
    "Strategy",
    "StrategyName",
    "Zero1",
    "Zero2",
    "Zero3",
    "by_name",
]


def by_name(name: str) -> Strategy:
    """The strategy called `name`, with its default arguments; ConfigError names the nearest when there is none."""
    if name not in STRATEGIES:
        raise ConfigError(f"strategy={name!r}: must be one of {', '.join(STRATEGIES)}.{nearest(name, STRATEGIES)}")
    strategy: Strategy = getattr(sys.modules[__name__], STRATEGIES[name])()
    return strategy


if not TYPE_CHECKING:  # they would be told that any name is there
    __getattr__, __dir__ = exports(__name__, _MODULES)
