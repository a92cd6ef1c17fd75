"""Gradients summed over ranks along a plan."""

from typing import TYPE_CHECKING

from trainkit.lazy import exports

if TYPE_CHECKING:
    from trainkit.reduction.collectives import Route
    from trainkit.reduction.comm import Comm
    from trainkit.reduction.reducer import Reducer

__all__ = [
    "Comm",
    "Reducer",
    "Route",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Comm": "trainkit.reduction.comm",
            "Reducer": "trainkit.reduction.reducer",
            "Route": "trainkit.reduction.collectives",
        },
    )
