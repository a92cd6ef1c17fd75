"""The progress of a sweep: a live table on a terminal, a line for each trial elsewhere."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainkit.cli.output import console, say

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from trainkit.sweep.driver import Driver
    from trainkit.sweep.trial import Trial

_NUM_SHOWN = 5  # of the newest trials
_EVERY_S = 0.5


class Progress:
    """Shows how a sweep goes."""

    def __init__(self) -> None:
        self._console = console()
        self._live: Live | None = None
        self._drawn = 0.0
        self._newest: list[str] = []

    @contextmanager
    def shown(self) -> Iterator[None]:
        """A context in which a terminal has the live table."""
        if not self._console.is_terminal:
            yield
            return
        from rich.live import Live

        with Live(console=self._console, auto_refresh=False, transient=True) as self._live:
            try:
                yield
            finally:
                self._live = None

    def report(self, text: str) -> None:
        """Prints a line above the table."""
        if self._live is None:
            say(text)
        else:
            self._live.console.print(f"trainkit: {text}", markup=False)

    def left(self, trial: "Trial", metrics: Iterable[str]) -> None:
        """Takes a trial that has ended, or was paused.

        Args:
            trial: as the study has it now.
            metrics: names.
        """
        if trial.state == "waiting":  # it goes on, which was said
            return
        line = line_of(trial, metrics)
        self._newest = [*self._newest[1 - _NUM_SHOWN :], line]
        if trial.state == "failed":
            self.report(line)
        elif self._live is None:
            print(line, flush=True)

    def show(self, driver: "Driver") -> None:
        """Draws the table, twice a second at most."""
        if self._live is None or time.monotonic() - self._drawn < _EVERY_S:
            return
        self._drawn = time.monotonic()
        self._live.update(self._table(driver), refresh=True)

    def _table(self, driver: "Driver") -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        from trainkit.sweep import front

        trials = driver.study.trials()
        table = Table("slot", "trial", "step", "", "configuration", box=None)
        for worker in driver.workers:
            trial, slot = worker.trial, worker.process.slot.name
            if trial is None:
                table.add_row(slot, "-")
                continue
            bar = ProgressBar(total=1.0, completed=worker.share or 0.0, width=20)
            table.add_row(slot, str(trial.number), f"{worker.step:,}", bar, _configuration(trial.params))
        best = front(trials, driver.study.signs)
        lines = [headline(trials, driver.study.num_trials, driver.seconds_left(trials))]
        lines += [f"best: {line_of(trial, driver.study.metrics)}" for trial in best[:3]]
        return Group(*map(Text, lines), table, *map(Text, self._newest))


def headline(trials: "Iterable[Trial]", num_trials: int, seconds_left: float | None) -> str:
    """How many trials are in which state, and how long the rest takes.

    Args:
        trials: all of them.
        num_trials: of the sweep.
        seconds_left: None: not known.
    """
    from trainkit.tracking.console import duration

    counts = Counter(trial.state for trial in trials)
    ended = sum(counts[state] for state in ("finished", "pruned", "failed"))
    states = ", ".join(
        f"{counts[s]:,} {s}" for s in ("finished", "pruned", "failed", "paused", "running", "waiting") if counts[s]
    )
    left = f"; about {duration(seconds_left)} left" if seconds_left is not None else ""
    return f"{ended:,} of {num_trials:,} trials have ended{f': {states}' if states else ''}{left}"


def line_of(trial: "Trial", metrics: Iterable[str]) -> str:
    """A trial in one line.

    Args:
        trial: it.
        metrics: names, in the order of its values.
    """
    values = trial.values or ()
    if trial.state == "failed":
        result = f"failed: {trial.record.error}"
    elif values:
        result = ", ".join(f"{name} {value:.6g}" for name, value in zip(metrics, values, strict=True))
    else:
        last = max(trial.reported, default=None)
        seen = f" at {next(iter(metrics))} {trial.reported[last]:.6g}" if last is not None else ""
        result = f"{trial.state}{seen}"
    if trial.state == "pruned" and values:
        result = f"stopped early at {result}"
    return f"trial {trial.number}: {result} ({_configuration(trial.params)}; {trial.record.seconds:.1f} s)"


def _configuration(params: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_short(value)}" for key, value in params.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
