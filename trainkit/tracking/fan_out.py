"""Trackers: calls several trackers, and isolates training from one that fails."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from trainkit.logger import logger
from trainkit.tracking.means import number_of
from trainkit.tracking.pictures import picture, require_rows, require_text
from trainkit.tracking.tracker import Run, Status, Tracker, WriteDeferredError

MAX_QUEUED_BYTES = 1 << 28
CALL_BYTES = 1000  # memory of a queued call with numbers

Call = Callable[[Tracker], None]


class Trackers(Tracker):
    """Calls each of several trackers, after a check of the values.

    A call that a tracker cannot write (OSError, such as a full disk) is queued, up to 256 MB, and repeated in order
    before the next call; the failure and the recovery are each logged once. A tracker that raises any other
    exception is logged once and removed.

    Args:
        trackers: the trackers by name, called in this order; None leaves a name out.

    Raises:
        ConfigError: by every method that is given a value which cannot be logged, naming it.

    Example:
        >>> from trainkit.tracking import Console
        >>> Trackers(console=Console(), wandb=None).names
        ['console']
    """

    def __init__(self, **trackers: Tracker | None):
        self._trackers = {
            name: _QueuedTracker(name, tracker) for name, tracker in trackers.items() if tracker is not None
        }
        self._states: dict[str, dict[str, Any]] = {}

    def add(self, name: str, tracker: Tracker) -> None:
        """Calls another tracker too, after all others.

        Args:
            name: its name, which none of the others has.
            tracker: it, before it is started.
        """
        assert name not in self._trackers
        self._trackers[name] = _QueuedTracker(name, tracker)

    @property
    def names(self) -> list[str]:
        """Names of the trackers that have not failed."""
        return list(self._trackers)

    def start(self, run: Run) -> None:
        """Starts every tracker."""
        self._call_each(lambda tracker: tracker.start(run))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs training metrics: numbers, or tensors and arrays of one element."""
        numbers = _numbers(values)
        self._call_each(lambda tracker: tracker.log(step, numbers))

    def evaluation(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs evaluation metrics: numbers, or tensors and arrays of one element."""
        numbers = _numbers(values)
        self._call_each(lambda tracker: tracker.evaluation(step, numbers))

    def baselines(self, step: int, baselines: Mapping[str, Mapping[str, Any]]) -> None:
        """Logs the baselines of evaluation metrics."""
        numbers = {metric: _numbers(values) for metric, values in baselines.items()}
        self._call_each(lambda tracker: tracker.baselines(step, numbers))

    def intervals(self, step: int, intervals: Mapping[str, tuple[Any, Any]]) -> None:
        """Logs the confidence intervals of evaluation metrics."""
        ends = {name: (number_of(name, low), number_of(name, high)) for name, (low, high) in intervals.items()}
        self._call_each(lambda tracker: tracker.intervals(step, ends))

    def image(self, step: int, name: str, image: Any) -> None:
        """Logs a picture.

        Args:
            step: the number of steps done.
            name: the name of the picture.
            image: whatever `picture` accepts, such as a matplotlib figure, a PIL image, an array or a tensor.

        Raises:
            ConfigError: naming one that is no picture.
        """
        pixels = picture(name, image)
        self._call_each(lambda tracker: tracker.image(step, name, pixels), num_bytes=pixels.nbytes)

    def text(self, step: int, name: str, text: str) -> None:
        """Logs a text."""
        require_text(name, text)
        self._call_each(lambda tracker: tracker.text(step, name, text), num_bytes=len(text))

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a table, whose rows must have as many cells as there are columns."""
        require_rows(name, columns, rows)
        self._call_each(lambda tracker: tracker.table(step, name, columns, rows), num_bytes=100 * len(rows))

    def message(self, text: str) -> None:
        """Logs a line about the run itself."""
        self._call_each(lambda tracker: tracker.message(text))

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of the trackers by name; a tracker that failed keeps its last state."""
        for name, queued in list(self._trackers.items()):
            own: dict[str, Any] = {}

            def ask(tracker: Tracker, own: dict[str, Any] = own) -> None:
                own.update(tracker.state_dict())

            self._guarded(queued, ask)
            if own:
                self._states[name] = own
        return dict(self._states)  # with the last state of one that failed: in the next process it may work

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads the states of those trackers that have one in `state`."""
        self._states = dict(state)
        for name in self.names:
            if name in state:
                self._guarded(self._trackers[name], partial(_load_state, state=state[name]))

    def finish(self, status: Status) -> None:
        """Finishes every tracker, and reports the calls that could not be written."""
        self._call_each(lambda tracker: tracker.finish(status))
        for queued in self._trackers.values():
            queued.drop_rest()

    def _call_each(self, call: Call, num_bytes: int = 0) -> None:
        for queued in list(self._trackers.values()):
            self._guarded(queued, call, CALL_BYTES + num_bytes)

    def _guarded(self, queued: "_QueuedTracker", call: Call, num_bytes: int | None = None) -> None:
        try:
            if num_bytes is None:
                call(queued.tracker)
            else:
                queued.call(call, num_bytes)
        except Exception as error:
            if num_bytes is None and isinstance(error, OSError):
                return  # the next checkpoint asks for the state again
            del self._trackers[queued.name]
            logger(__name__).warning(
                f"tracker {queued.name!r} failed and is disabled; training continues. {_reason(error)}"
            )


def _load_state(tracker: Tracker, state: Mapping[str, Any]) -> None:
    tracker.load_state_dict(state)


class _QueuedTracker:
    """A tracker, and the calls that it could not write yet."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self.tracker = name, tracker
        self._calls: deque[tuple[Call, int]] = deque()
        self._num_bytes = self._num_dropped = 0
        self._is_behind = False

    def call(self, call: Call, num_bytes: int) -> None:
        """Makes `call` after all earlier ones. Exceptions other than OSError are not caught."""
        self._calls.append((call, num_bytes))
        self._num_bytes += num_bytes
        try:
            while self._calls:
                self._calls[0][0](self.tracker)
                self._drop_first()
        except OSError as error:
            if isinstance(error, WriteDeferredError):
                self._drop_first()
            while self._num_bytes > MAX_QUEUED_BYTES:
                self._drop_first()
                self._num_dropped += 1
            if not self._is_behind:
                self._is_behind = True
                retry = "its calls are queued and repeated with the next one; training continues"
                logger(__name__).warning(f"tracker {self.name!r} cannot write: {retry}. {_reason(error)}")
            return
        if self._is_behind and not self.tracker.is_behind:
            self._is_behind = False
            lost = f", except for {self._num_dropped} calls beyond the limit of the queue" if self._num_dropped else ""
            logger(__name__).info(f"tracker {self.name!r} writes again, and has written the queued calls{lost}")

    def drop_rest(self) -> None:
        """Reports the calls that were not written, and drops them."""
        if self._is_behind:
            lost = len(self._calls) + self._num_dropped
            logger(__name__).warning(
                f"tracker {self.name!r} could not write until the end: {lost or 'some'} of its calls are lost"
            )
        self._calls.clear()
        self._num_bytes = self._num_dropped = 0
        self._is_behind = False

    def _drop_first(self) -> None:
        self._num_bytes -= self._calls.popleft()[1]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Converts metrics to floats; ints stay ints."""
    return {name: value if type(value) in (int, float) else number_of(name, value) for name, value in values.items()}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"
