"""The processes of a job, their collectives, and the shard of a tensor that each process holds."""

from typing import TYPE_CHECKING

from trainkit.lazy import exports

if TYPE_CHECKING:
    from trainkit.distributed.cluster import current_cluster
    from trainkit.distributed.processes import launch

__all__ = [
    "current_cluster",
    "launch",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = exports(
        __name__,
        {
            "current_cluster": "trainkit.distributed.cluster",
            "launch": "trainkit.distributed.processes",
        },
    )
