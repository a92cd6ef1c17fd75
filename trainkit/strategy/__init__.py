"""Strategies by name: how modules are spread over the processes of a job."""

from typing import Literal

from trainkit.errors import ConfigError, nearest
from trainkit.strategy.base import Strategy
from trainkit.strategy.ddp import DDP
from trainkit.strategy.fsdp import FSDP, HSDP
from trainkit.strategy.single import Single
from trainkit.strategy.zero import Zero1, Zero2, Zero3

StrategyName = Literal["single", "ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3"]
STRATEGIES: dict[str, type[Strategy]] = {kind.name: kind for kind in (Single, DDP, FSDP, HSDP, Zero1, Zero2, Zero3)}


def by_name(name: str) -> Strategy:
    """The strategy called `name`, with its default arguments; ConfigError names the nearest when there is none."""
    if name not in STRATEGIES:
        raise ConfigError(f"strategy={name!r}: allowed are {', '.join(STRATEGIES)}.{nearest(name, STRATEGIES)}")
    return STRATEGIES[name]()


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
