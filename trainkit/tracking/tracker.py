"""What every tracker hears."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

Status = Literal["finished", "failed", "interrupted"]


@dataclass(frozen=True)
class Run:
    """What a tracker is told at the start, once a process.

    `resumed_step` is None for a fresh run. n means that the checkpoint of step n was loaded: whatever an earlier
    process told about later steps will be told again.
    """

    directory: Path
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    num_samples: int | None = None  # position at which training ends, where it is known
    resumed_step: int | None = None
    summary: tuple[str, ...] = ()  # lines for a reader: model, strategy, precision, ranks


class Kept(OSError):
    """What a tracker was told cannot be written now; it keeps it, `is_behind` and tries again by itself."""


class Tracker:
    """Receives numbers, pictures and text of a run; hears nothing on ranks other than 0, and has no way to answer.

    Every method does nothing here, so a subclass writes only those it cares about, and a bare `Tracker()` is the
    tracker of the ranks that do not track. Order of calls: `load_state` (after a resume), `start`, the rest in any
    order, `finish`.
    """

    is_behind = False
    """Whether it keeps something that it could not write yet, see `Kept`."""

    def start(self, run: Run) -> None:
        """Open what has to be opened; on a resume, forget what will be told again."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of training, means over the steps since the last call.

        Besides the recipe's own: `position` (samples seen), `samples_per_s` and `eta_s`, where that is
        uncertain also `eta_low_s` and `eta_high_s` (see `Throughput`).
        """

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of an evaluation made after `step`."""

    def baselines(self, step: int, baselines: Mapping[str, Mapping[str, float]]) -> None:
        """From `step` on: metric of an evaluation -> name -> the value that it is to be held against."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture, uint8 [height, width, 3 channels or 1]."""

    def text(self, step: int, name: str, text: str) -> None:
        """Lines of text, such as sentences filled in by the model."""

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Rows of numbers and strings under named columns."""

    def message(self, text: str) -> None:
        """One line about the run itself: a checkpoint saved, a network grown."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed process must know (JSON-able); goes into checkpoints."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The `state_dict()` of the process that wrote the checkpoint; comes before `start`."""

    def finish(self, status: Status) -> None:
        """Write what is outstanding. Nothing is told after it."""
