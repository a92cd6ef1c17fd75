"""What every tracker hears, and the fan-out that keeps a failing one away from training."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

Status = Literal["finished", "failed", "interrupted"]
T = TypeVar("T")


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


class Tracker:
    """Receives numbers, pictures and text of a run; hears nothing on ranks other than 0, and has no way to answer.

    Every method does nothing here, so a subclass writes only those it cares about, and a bare `Tracker()` is the
    tracker of the ranks that do not track. Order of calls: `load_state` (after a resume), `start`, the rest in any
    order, `finish`.
    """

    def start(self, run: Run) -> None:
        """Open what has to be opened; on a resume, forget what will be told again."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of training, means over the steps since the last call.

        Besides the recipe's own: `position` (samples seen), `samples_per_s` and `eta_s` (see `Throughput`).
        """

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of an evaluation made after `step`."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture, uint8 [height, width, 3 channels or 1]."""

    def text(self, step: int, name: str, text: str) -> None:
        """Lines of text, such as sentences filled in by the model."""

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Rows of numbers and strings under named columns."""

    def message(self, text: str) -> None:
        """One line about the run itself: a checkpoint saved, a network grown."""

    def state(self) -> dict[str, Any]:
        """What a resumed process must know (JSON-able); goes into checkpoints."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The `state()` of the process that wrote the checkpoint; comes before `start`."""

    def finish(self, status: Status) -> None:
        """Write what is outstanding. Nothing is told after it."""


class Trackers(Tracker):
    """Tells every one of some named trackers. One that raises is reported once on stderr and told nothing more.

    >>> Trackers(console=Console(), wandb=None).names
    ['console']
    """

    def __init__(self, **trackers: Tracker | None):
        self._trackers = {name: tracker for name, tracker in trackers.items() if tracker is not None}
        self._states: dict[str, dict[str, Any]] = {}

    @property
    def names(self) -> list[str]:
        """Names of the trackers that still listen."""
        return list(self._trackers)

    def start(self, run: Run) -> None:
        self._tell(lambda tracker: tracker.start(run))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._tell(lambda tracker: tracker.log(step, values))

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        self._tell(lambda tracker: tracker.evaluation(step, values))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._tell(lambda tracker: tracker.image(step, name, image))

    def text(self, step: int, name: str, text: str) -> None:
        self._tell(lambda tracker: tracker.text(step, name, text))

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._tell(lambda tracker: tracker.table(step, name, columns, rows))

    def message(self, text: str) -> None:
        self._tell(lambda tracker: tracker.message(text))

    def state(self) -> dict[str, Any]:
        for name, tracker in list(self._trackers.items()):
            own = self._guarded(name, tracker.state)
            if own:
                self._states[name] = own
        return dict(self._states)  # one that failed keeps its last state: the next process may be luckier

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._states = dict(state)
        for name, tracker in list(self._trackers.items()):
            if name in state:
                self._guarded(name, partial(tracker.load_state, state[name]))

    def finish(self, status: Status) -> None:
        self._tell(lambda tracker: tracker.finish(status))

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, partial(call, tracker))

    def _guarded(self, name: str, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except Exception as error:
            del self._trackers[name]
            reason = " ".join(str(error).split()) or "no reason given"
            print(
                f"trainkit: tracker {name!r} failed and is told nothing more; training goes on. "
                f"{type(error).__name__}: {reason}",
                file=sys.stderr,
                flush=True,
            )
            return None
