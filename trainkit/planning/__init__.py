"""Plans for an all-reduce over a topology: their cost, and the choice among them."""

from typing import TYPE_CHECKING

from trainkit.lazy import exports

if TYPE_CHECKING:
    from trainkit.planning.cost import CostModel
    from trainkit.planning.reduce_plan import FORMATS, Format, ReducePlan, flat

__all__ = [
    "FORMATS",
    "CostModel",
    "Format",
    "ReducePlan",
    "flat",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = exports(
        __name__,
        {
            "CostModel": "trainkit.planning.cost",
            "FORMATS": "trainkit.planning.reduce_plan",
            "Format": "trainkit.planning.reduce_plan",
            "ReducePlan": "trainkit.planning.reduce_plan",
            "flat": "trainkit.planning.reduce_plan",
        },
    )
