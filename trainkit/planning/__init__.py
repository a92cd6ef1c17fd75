"""Plans for an all-reduce over a topology: their cost, and the choice among them."""

from typing import TYPE_CHECKING

from trainkit.lazy import exports

if TYPE_CHECKING:
    from trainkit.planning.cost import CostModel
    from trainkit.planning.reduce_plan import WIRE_DTYPES, ReducePlan, WireDtype, flat

__all__ = [
    "WIRE_DTYPES",
    "CostModel",
    "ReducePlan",
    "WireDtype",
    "flat",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = exports(
        __name__,
        {
            "CostModel": "trainkit.planning.cost",
            "WIRE_DTYPES": "trainkit.planning.reduce_plan",
            "WireDtype": "trainkit.planning.reduce_plan",
            "ReducePlan": "trainkit.planning.reduce_plan",
            "flat": "trainkit.planning.reduce_plan",
        },
    )
