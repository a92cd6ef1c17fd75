"""Tracker: the base class of everything that receives the metrics of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

Status = Literal["finished", "failed", "interrupted"]


@dataclass(frozen=True)
class Run:
    """A run as described to a tracker when it starts, once per process.

    Args:
        directory: the run directory.
        name: the name of the run.
        config: the configuration of the run.
        num_samples: the position at which training ends; None: not known.
        resumed_step: None for a new run. n: the checkpoint of step n was loaded, so steps after n that an earlier
            process logged will be logged again.
        summary: lines for a reader: model, strategy, precision, ranks.
        milestones: the position at which each part of the run begins, such as a growth phase, and its name.
    """

    directory: Path
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    num_samples: int | None = None
    resumed_step: int | None = None
    summary: tuple[str, ...] = ()
    milestones: tuple[tuple[int, str], ...] = ()


class WriteDeferredError(OSError):
    """Raised by a tracker that cannot write now, has set `is_behind`, and retries by itself with its next call."""


class Tracker:
    """Receives the metrics, pictures and text of a run. It is called on rank 0 only, and cannot change training.

    Every method does nothing here, so a subclass implements only those it needs; a bare `Tracker()` is the tracker of
    the other ranks. Order of calls: `load_state_dict` (after a resume), `start`, the others in any order, `finish`.

    An OSError means that the call could not be written now, and `Trackers` repeats it; see also `WriteDeferredError`.
    After any other exception the tracker is not called again.

    Example:
        >>> class LossPrinter(Tracker):
        ...     def log(self, step, values):
        ...         print(step, values["loss"])
        >>> LossPrinter().log(10, {"loss": 0.5})
        10 0.5
    """

    is_behind = False
    """Whether it holds something that it could not write yet; see `WriteDeferredError`."""

    def start(self, run: Run) -> None:
        """Opens files and connections; on a resume, removes the steps that will be logged again.

        Args:
            run: directory, name and configuration of the run.
        """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs training metrics.

        Args:
            step: the number of steps done.
            values: means over the steps since the last call, by name. Besides the recipe's own: `position` (samples so
                far), `samples_per_s` and `eta_s` (seconds left); where that is uncertain also `eta_low_s` and
                `eta_high_s` (see `Throughput`). `data_wait` and `comm_wait`: the fractions of the time since the last
                call for which rank 0 waited for its next batch, and for the gradients of other ranks; the latter where
                that can be seen, under DDP on the CPU. On a GPU `peak_memory_gb`, the most that rank 0 has allocated.
        """

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the metrics of an evaluation.

        Args:
            step: the number of steps done before the evaluation.
            values: the metrics by name.
        """

    def baselines(self, step: int, baselines: Mapping[str, Mapping[str, float]]) -> None:
        """Logs reference values that metrics of an evaluation are to be compared with.

        Args:
            step: the number of steps done; the values are valid from here on.
            baselines: metric -> name of the baseline -> value.
        """

    def intervals(self, step: int, intervals: Mapping[str, tuple[float, float]]) -> None:
        """Logs the 95 % confidence intervals of metrics, over held-out samples; called after `evaluation`.

        Args:
            step: the number of steps done before the evaluation.
            intervals: the two ends, by metric.
        """

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs a picture.

        Args:
            step: the number of steps done.
            name: the name of the picture.
            image: uint8 [height, width, 1 or 3].
        """

    def text(self, step: int, name: str, text: str) -> None:
        """Logs a text, such as sentences filled in by the model.

        Args:
            step: the number of steps done.
            name: the name of the text.
            text: one or more lines.
        """

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a table.

        Args:
            step: the number of steps done.
            name: the name of the table.
            columns: names of the columns.
            rows: numbers and strings, one per column; in a column either; None: an empty cell.
        """

    def message(self, text: str) -> None:
        """Logs a line about the run itself, such as "checkpoint saved"."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a resumed process needs, JSON-serializable; stored in checkpoints."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads the `state_dict()` of the process that wrote the checkpoint; called before `start`."""

    def finish(self, status: Status) -> None:
        """Writes what is outstanding. The last call.

        Args:
            status: how the run ended.
        """


def by_end(intervals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Returns the ends of intervals as numbers with names of their own.

    Example:
        >>> by_end({"accuracy": (0.5, 0.6)})
        {'accuracy_low': 0.5, 'accuracy_high': 0.6}
    """
    return {
        f"{name}_{end}": value
        for name, ends in intervals.items()
        for end, value in zip(("low", "high"), ends, strict=True)
    }
