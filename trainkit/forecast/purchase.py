"""Options: the machines that a budget buys, at the prices that the user gives. No price is known here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainkit.errors import ConfigError
from trainkit.forecast.speed import speed_of
from trainkit.planning.changes import TRAFFIC, require_strategy
from trainkit.planning.simulate import Point, simulate
from trainkit.planning.workload import workload
from trainkit.topology.cards import Precision
from trainkit.topology.gpus import card_named, has_bridges, machine_of
from trainkit.topology.topology import Topology

BRIDGE, HOST = "bridge", "host"
COUNTS = (1, 2, 3, 4, 6, 8)
"""Cards of one machine."""


@dataclass(frozen=True, kw_only=True)
class Prices:
    """US dollars of the parts.

    Args:
        cards: by the name of the card.
        bridge: of one NVLink bridge; None: not known.
        host: of the machine without cards; 0: it is there.
    """

    cards: dict[str, float]
    bridge: float | None = None
    host: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Option:
    """A machine within the budget.

    Args:
        topology: of it.
        usd: of its parts that have a price.
        point: the predicted step.
    """

    topology: Topology
    usd: float
    point: Point

    @property
    def samples_per_s_per_1000_usd(self) -> float:
        """Throughput for the money."""
        return self.point.samples_per_s / self.usd * 1000


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be trained.

    Args:
        recipe: its name, see `workload`.
        precision: of the computation.
        strategy: one of TRAFFIC.
        samples_per_device: in a step; None: that of the recipe.
    """

    recipe: str
    precision: Precision = "bf16"
    strategy: str = "ddp"
    samples_per_device: int | None = None


def prices_of(texts: Sequence[str]) -> Prices:
    """The prices that were typed.

    Args:
        texts: each NAME=USD, where NAME is a card, `bridge` or `host`.

    Raises:
        ConfigError: for what is no price.
        TopologyError: for an unknown card.

    Example:
        >>> prices_of(["3090=700", "bridge=120"]).cards
        {'GeForce RTX 3090': 700.0}
    """
    cards: dict[str, float] = {}
    others: dict[str, float] = {}
    for text in texts:
        name, _, amount = text.rpartition("=")
        try:
            usd = float(amount)
        except ValueError:
            usd = math.nan
        if not name or not 0 < usd < math.inf:
            raise ConfigError(f"--price={text}: must be NAME=USD, NAME a card, bridge or host, such as 3090=700")
        if name in (BRIDGE, HOST):
            others[name] = usd
        else:
            cards[card_named(name, f"--price={text}").name] = usd
    return Prices(cards=cards, bridge=others.get(BRIDGE), host=others.get(HOST, 0.0))


def options(budget: float, prices: Prices, task: Task) -> list[Option]:
    """The machines that a budget buys.

    Args:
        budget: US dollars.
        prices: of the parts.
        task: what is to be trained.

    Returns:
        The fastest first; of two that are equally fast the cheaper one.

    Raises:
        ConfigError: no card has a price, or the budget buys none.
        TopologyError: the speed of a card is not known.
    """
    if not prices.cards:
        raise ConfigError(
            f"--budget={budget:g}: needs the price of a card, which trainkit does not know: --price 3090=USD; also "
            f"bridge=USD and host=USD (board, processor, power supply)"
        )
    found = []
    for name, usd in prices.cards.items():
        card = card_named(name, "price")
        for count in COUNTS:
            total = prices.host + count * usd
            found.append(_option(machine_of(card, count), total, budget, task))
            if prices.bridge is not None and has_bridges(card) and count % 2 == 0:
                num_bridges = -(-count // (card.bridge_size or 2))
                bridged = machine_of(card, count, is_bridged=True)
                found.append(_option(bridged, total + num_bridges * prices.bridge, budget, task))
    bought = [option for option in found if option is not None]
    if not bought:
        cheapest = min(prices.cards, key=lambda key: prices.cards[key])
        least = prices.host + prices.cards[cheapest]
        raise ConfigError(f"--budget={budget:g}: buys none of these cards: one {cheapest} costs {least:g}")
    return sorted(bought, key=lambda option: (-option.point.samples_per_s, option.usd))


def _option(machine: Topology, usd: float, budget: float, task: Task) -> Option | None:
    if usd > budget:
        return None
    speed = speed_of(machine.hosts[0].devices[0], task.precision, task.recipe)
    work = workload(
        task.recipe,
        samples_per_device=task.samples_per_device,
        tflops=speed.tflops,
        precision=task.precision,
    )
    require_strategy(task.strategy)
    return Option(topology=machine, usd=usd, point=simulate(machine, [1], work, traffic=TRAFFIC[task.strategy])[0])
