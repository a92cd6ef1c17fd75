"""The trackers that a configuration names."""

from collections.abc import Mapping

from trainkit.errors import ConfigError
from trainkit.tracking.console import Console
from trainkit.tracking.curves import Curve
from trainkit.tracking.fan_out import Trackers
from trainkit.tracking.jsonl import Jsonl
from trainkit.tracking.media import Media
from trainkit.tracking.report import Report
from trainkit.tracking.tensorboard import TensorBoard
from trainkit.tracking.tracker import Tracker
from trainkit.tracking.wandb import WandB


def trackers(
    *,
    console: bool = True,
    jsonl: bool = True,
    curve: bool = True,
    media: bool = True,
    report: bool = True,
    wandb: WandB | None = None,
    tensorboard: bool = False,
    others: Mapping[str, Tracker] | None = None,
) -> Trackers:
    """Makes the trackers of a run; nothing is opened before they are started.

    Args:
        console: whether to show progress on the console.
        jsonl: whether to write metrics.jsonl.
        curve: whether to draw curve.png; needs `jsonl`.
        media: whether to write pictures, texts and tables as files.
        report: whether to write report.html; needs `jsonl`, and shows what `media` wrote.
        wandb: the Weights & Biases tracker; None: not used.
        tensorboard: whether to write TensorBoard event files.
        others: further trackers by name.

    Returns:
        One tracker that calls them all.

    Raises:
        ConfigError: where `curve` or `report` is set without `jsonl`, or a name in `others` is used already.
    """
    for name, is_chosen in (("curve", curve), ("report", report)):
        if is_chosen and not jsonl:
            raise ConfigError(
                f"tracking.{name}=true shows metrics.jsonl: type tracking.jsonl=true or tracking.{name}=false"
            )
    chosen: dict[str, Tracker | None] = {
        "console": Console() if console else None,  # first: it removes the bar before others print at the end
        "jsonl": Jsonl() if jsonl else None,
        "media": Media() if media else None,
        "wandb": wandb,
        "tensorboard": TensorBoard() if tensorboard else None,
        "curve": Curve() if curve else None,  # after jsonl, which it reads
        "report": Report() if report else None,  # after jsonl and media, which it reads
    }
    taken = sorted(chosen.keys() & (others or {}).keys())
    if taken:
        raise ConfigError(f"tracking.others.{taken[0]} has the name of a built-in tracker: choose another name")
    for name, tracker in (others or {}).items():
        if not isinstance(tracker, Tracker):
            raise ConfigError(f"tracking.others.{name}={tracker!r}: must be a trainkit.Tracker, or of a class below it")
    return Trackers(**chosen, **(others or {}))
