"""Strategies by name: how modules are spread over the processes of a job."""

from trainkit.errors import ConfigError, nearest
from trainkit.strategy.base import Strategy
from trainkit.strategy.ddp import DDP
from trainkit.strategy.single import Single

STRATEGIES: dict[str, type[Strategy]] = {Single.name: Single, DDP.name: DDP}


def by_name(name: str) -> Strategy:
    """The strategy called `name`, with its default arguments; ConfigError names the nearest when there is none."""
    if name not in STRATEGIES:
        raise ConfigError(f"strategy={name!r}: allowed are {', '.join(STRATEGIES)}.{nearest(name, STRATEGIES)}")
    return STRATEGIES[name]()


__all__ = ["DDP", "STRATEGIES", "Single", "Strategy", "by_name"]
