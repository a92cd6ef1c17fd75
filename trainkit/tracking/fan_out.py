"""The fan-out to several trackers, which keeps one that fails away from training."""

import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from trainkit.tracking.means import number_of
from trainkit.tracking.pictures import picture, require_rows, require_text
from trainkit.tracking.tracker import Kept, Run, Status, Tracker

MOST_KEPT_BYTES = 1 << 28
CALL_BYTES = 1000  # of one that holds numbers

Call = Callable[[Tracker], None]


class Trackers(Tracker):
    """Tells every one of some named trackers, after a check of what it is given: ConfigError names what cannot be.

    What a tracker cannot write (OSError: a full disk, say) is kept, up to 256 MB, and told to it again, in order, with
    the next call; both are said once on stderr. One that raises anything else is reported once and told nothing more.

    >>> Trackers(console=Console(), wandb=None).names
    ['console']
    """

    def __init__(self, **trackers: Tracker | None):
        self._trackers = {name: _Listener(name, tracker) for name, tracker in trackers.items() if tracker is not None}
        self._states: dict[str, dict[str, Any]] = {}

    @property
    def names(self) -> list[str]:
        """Names of the trackers that still listen."""
        return list(self._trackers)

    def start(self, run: Run) -> None:
        self._tell(lambda tracker: tracker.start(run))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = _numbers(values)
        self._tell(lambda tracker: tracker.log(step, numbers))

    def evaluation(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = _numbers(values)
        self._tell(lambda tracker: tracker.evaluation(step, numbers))

    def baselines(self, step: int, baselines: Mapping[str, Mapping[str, Any]]) -> None:
        numbers = {metric: _numbers(values) for metric, values in baselines.items()}
        self._tell(lambda tracker: tracker.baselines(step, numbers))

    def image(self, step: int, name: str, image: Any) -> None:
        """A picture: whatever `picture` takes, such as a matplotlib figure, a PIL image, an array or a tensor."""
        pixels = picture(name, image)
        self._tell(lambda tracker: tracker.image(step, name, pixels), num_bytes=pixels.nbytes)

    def text(self, step: int, name: str, text: str) -> None:
        require_text(name, text)
        self._tell(lambda tracker: tracker.text(step, name, text), num_bytes=len(text))

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        require_rows(name, columns, rows)
        self._tell(lambda tracker: tracker.table(step, name, columns, rows), num_bytes=100 * len(rows))

    def message(self, text: str) -> None:
        self._tell(lambda tracker: tracker.message(text))

    def state_dict(self) -> dict[str, Any]:
        for name, listener in list(self._trackers.items()):
            own: dict[str, Any] = {}

            def ask(tracker: Tracker, own: dict[str, Any] = own) -> None:
                own.update(tracker.state_dict())

            self._guarded(listener, ask)
            if own:
                self._states[name] = own
        return dict(self._states)  # one that failed keeps its last state: the next process may be luckier

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._states = dict(state)
        for name in self.names:
            if name in state:
                self._guarded(self._trackers[name], partial(_load_state, state=state[name]))

    def finish(self, status: Status) -> None:
        self._tell(lambda tracker: tracker.finish(status))
        for listener in self._trackers.values():
            listener.give_up()

    def _tell(self, call: Call, num_bytes: int = 0) -> None:
        for listener in list(self._trackers.values()):
            self._guarded(listener, call, CALL_BYTES + num_bytes)

    def _guarded(self, listener: "_Listener", call: Call, num_bytes: int | None = None) -> None:
        try:
            if num_bytes is None:
                call(listener.tracker)
            else:
                listener.tell(call, num_bytes)
        except Exception as error:
            if num_bytes is None and isinstance(error, OSError):
                return  # a state that cannot be told now is told with the next checkpoint
            del self._trackers[listener.name]
            _say(f"tracker {listener.name!r} failed and is told nothing more; training goes on. {_reason(error)}")


def _load_state(tracker: Tracker, state: Mapping[str, Any]) -> None:
    tracker.load_state_dict(state)


class _Listener:
    """A tracker, and what it could not write yet."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self.tracker = name, tracker
        self._calls: deque[tuple[Call, int]] = deque()
        self._num_bytes = self._num_dropped = 0
        self._is_behind = False

    def tell(self, call: Call, num_bytes: int) -> None:
        """`call` after all that came before it. Raises what is no OSError."""
        self._calls.append((call, num_bytes))
        self._num_bytes += num_bytes
        try:
            while self._calls:
                self._calls[0][0](self.tracker)
                self._drop_first()
        except OSError as error:
            if isinstance(error, Kept):
                self._drop_first()
            while self._num_bytes > MOST_KEPT_BYTES:
                self._drop_first()
                self._num_dropped += 1
            if not self._is_behind:
                self._is_behind = True
                told = "keeps what it is told and tries again with the next call; training goes on"
                _say(f"tracker {self.name!r} cannot write, {told}. {_reason(error)}")
            return
        if self._is_behind and not self.tracker.is_behind:
            self._is_behind = False
            lost = f", except for {self._num_dropped} calls that were too many to keep" if self._num_dropped else ""
            _say(f"tracker {self.name!r} writes again, and has written what it had kept{lost}")

    def give_up(self) -> None:
        """Says what was not written, where nothing more comes."""
        if self._is_behind:
            lost = len(self._calls) + self._num_dropped
            _say(f"tracker {self.name!r} could not write to the end: {lost or 'some'} of its calls are lost")
        self._calls.clear()
        self._num_bytes = self._num_dropped = 0
        self._is_behind = False

    def _drop_first(self) -> None:
        self._num_bytes -= self._calls.popleft()[1]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Counts stay integers."""
    return {name: value if type(value) in (int, float) else number_of(name, value) for name, value in values.items()}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"


def _say(text: str) -> None:
    with suppress(OSError):  # stderr may be on the full disk
        print(f"trainkit: {text}", file=sys.stderr, flush=True)
