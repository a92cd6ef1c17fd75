"""The trackers that a configuration asks for."""

from collections.abc import Mapping

from trainkit.errors import ConfigError
from trainkit.tracking.console import Console
from trainkit.tracking.curves import Curve
from trainkit.tracking.fan_out import Trackers
from trainkit.tracking.jsonl import Jsonl
from trainkit.tracking.media import Media
from trainkit.tracking.tensorboard import TensorBoard
from trainkit.tracking.tracker import Tracker
from trainkit.tracking.wandb import WandB


def trackers(
    *,
    console: bool = True,
    jsonl: bool = True,
    curve: bool = True,
    media: bool = True,
    wandb: WandB | None = None,
    tensorboard: bool = False,
    others: Mapping[str, Tracker] | None = None,
) -> Trackers:
    """`others` are trackers of one's own by name. Raises ConfigError for what cannot work; opens nothing yet."""
    if curve and not jsonl:
        raise ConfigError("tracking.curve=true draws metrics.jsonl: type tracking.jsonl=true or tracking.curve=false")
    chosen: dict[str, Tracker | None] = {
        "console": Console() if console else None,  # first: it takes the bar down before others print their last words
        "jsonl": Jsonl() if jsonl else None,
        "media": Media() if media else None,
        "wandb": wandb,
        "tensorboard": TensorBoard() if tensorboard else None,
        "curve": Curve() if curve else None,  # after jsonl, which it reads
    }
    taken = sorted(chosen.keys() & (others or {}).keys())
    if taken:
        raise ConfigError(f"tracking.others.{taken[0]} takes the name of a tracker that exists: choose another name")
    for name, tracker in (others or {}).items():
        if not isinstance(tracker, Tracker):
            raise ConfigError(f"tracking.others.{name}={tracker!r}: must be a trainkit.Tracker, or of a class below it")
    return Trackers(**chosen, **(others or {}))
