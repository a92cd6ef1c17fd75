"""Reporter: the tracker by which a trial tells its sweep how it goes, and waits for an answer at each evaluation."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from trainkit.tracking import Run, Tracker

GO_ON, STOP = b"g", b"s"
_EVERY_S = 1.0


class Reporter(Tracker):
    """Writes events as lines of JSON; after an evaluation it waits until the driver has decided about the trial.

    Args:
        events: a file descriptor, written to.
        answers: a file descriptor, of which one byte is read for each evaluation.
    """

    goes_on = True
    """What the driver has answered; also where it is gone, which the worker notices."""

    def __init__(self, events: int, answers: int) -> None:
        self._events, self._answers = events, answers
        self._num_samples: int | None = None
        self._logged: tuple[int, float] | None = None
        self._told = 0.0

    def start(self, run: Run) -> None:
        """Takes the length of the run."""
        self._num_samples = run.num_samples

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tells how far the run has come, once a second."""
        if "position" in values and step:
            self._logged = step, values["position"]
        if time.monotonic() - self._told > _EVERY_S:
            self._told = time.monotonic()
            send(self._events, event="progress", step=step, share=self._share(step))

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Tells the metrics, and waits for the answer."""
        send(self._events, event="evaluation", step=step, share=self._share(step), metrics=dict(values))
        self.goes_on = os.read(self._answers, 1) != STOP

    def _share(self, step: int) -> float | None:
        """Of the run that is done; None: not known. The newest position that was logged may be some steps old."""
        if self._logged is None or not self._num_samples:
            return None
        return min(1.0, self._logged[1] * step / self._logged[0] / self._num_samples)


def send(descriptor: int, **event: Any) -> None:
    """Writes one event.

    Args:
        descriptor: of a pipe.
        event: JSON-able values; numbers that are not finite are written as Python's JSON does.

    Raises:
        OSError: nobody reads it any more.
    """
    line = (json.dumps(event) + "\n").encode()
    while line:
        line = line[os.write(descriptor, line) :]
