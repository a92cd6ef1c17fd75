"""Plans for an all-reduce over a topology: their cost, and the choice among them."""

from typing import TYPE_CHECKING

from trainkit.lazy import exports

if TYPE_CHECKING:
    from trainkit.planning.accuracy import PUBLISHED_RANGES, SMALL_BYTES, MachineKind, machine_kind, time_range_us
    from trainkit.planning.cost import CostModel
    from trainkit.planning.reduce_plan import WIRE_DTYPES, ReducePlan, WireDtype, flat

__all__ = [
    "PUBLISHED_RANGES",
    "SMALL_BYTES",
    "WIRE_DTYPES",
    "CostModel",
    "MachineKind",
    "ReducePlan",
    "WireDtype",
    "flat",
    "machine_kind",
    "time_range_us",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = exports(
        __name__,
        {
            "PUBLISHED_RANGES": "trainkit.planning.accuracy",
            "SMALL_BYTES": "trainkit.planning.accuracy",
            "MachineKind": "trainkit.planning.accuracy",
            "machine_kind": "trainkit.planning.accuracy",
            "time_range_us": "trainkit.planning.accuracy",
            "CostModel": "trainkit.planning.cost",
            "WIRE_DTYPES": "trainkit.planning.reduce_plan",
            "WireDtype": "trainkit.planning.reduce_plan",
            "ReducePlan": "trainkit.planning.reduce_plan",
            "flat": "trainkit.planning.reduce_plan",
        },
    )
