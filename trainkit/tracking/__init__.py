"""Trackers: the destinations of a run's metrics, pictures and text. They run on rank 0 and cannot change training."""

from trainkit.tracking.console import Console
from trainkit.tracking.curves import Curve
from trainkit.tracking.fan_out import Trackers
from trainkit.tracking.jsonl import Jsonl
from trainkit.tracking.means import Last, Means
from trainkit.tracking.media import Media
from trainkit.tracking.pictures import picture
from trainkit.tracking.run_log import RunLog
from trainkit.tracking.standard import trackers
from trainkit.tracking.tensorboard import TensorBoard
from trainkit.tracking.throughput import Throughput
from trainkit.tracking.tracker import Run, Status, Tracker, WriteDeferredError
from trainkit.tracking.wandb import WandB

__all__ = [
    "Console",
    "Curve",
    "Jsonl",
    "Last",
    "Means",
    "Media",
    "Run",
    "RunLog",
    "Status",
    "TensorBoard",
    "Throughput",
    "Tracker",
    "Trackers",
    "WandB",
    "WriteDeferredError",
    "picture",
    "trackers",
]


def __dir__() -> list[str]:
    return sorted(__all__)
