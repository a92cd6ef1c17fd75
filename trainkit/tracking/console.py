"""Console: a live progress bar on a terminal, lines at a regular interval elsewhere."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trainkit.tracking.tracker import Run, Status, Tracker, WriteDeferredError

if TYPE_CHECKING:  # rich takes a tenth of a second to import: where it is used
    import rich.console
    from rich.progress import Progress, TaskID

PLAIN_WIDTH = 200  # columns of a table in a log file, which has no width of its own
BAR_REFRESH_S = 0.1
BAR_WIDTH = 12
ETA_WIDTH = 7
UNITS = (("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86400.0))
CERTAIN = 1.1  # a range of times with a smaller ratio is shown as one time
OWN_COLUMNS = ("position", "samples_per_s", "eta_s", "eta_low_s", "eta_high_s")  # shown in columns of their own
NOT_SHOWN = ("data_wait", "comm_wait", "peak_memory_gb")
LINE_INTERVAL_S = 10.0  # where the output is no terminal
ONLY_IF_ANY = ("skipped",)  # shown only where it is not zero


class Console(Tracker):
    """Shows the step, the fraction done, every metric, samples/s and the time left.

    On a terminal, the progress bar is drawn when metrics are logged, not by a thread that would compete with training;
    other output appears above it. Elsewhere a line is printed at most every ten seconds. Evaluations, texts,
    tables and messages are always printed on lines of their own.

    Args:
        console: the rich console to print to; None: standard output.
        clock: returns seconds, monotonically.
    """

    def __init__(
        self,
        *,
        console: "rich.console.Console | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._given_console = console
        self._clock = clock
        self._num_samples: int | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._next_s = 0.0
        self._unprinted = ""
        self._eta_width = ETA_WIDTH

    def start(self, run: Run) -> None:
        """Prints the summary of the run and, on a terminal, starts the progress bar."""
        self._num_samples = run.num_samples
        for line in run.summary:
            self._print(line)
        if run.resumed_step is not None:
            self._print(f"resumed after step {run.resumed_step}")
        self._next_s = self._clock()
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._start_bar()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Updates the progress bar, or prints a line if ten seconds have passed since the last one."""
        line = self._line(step, values)
        now = self._clock()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=line, completed=values.get("position", 0))
            if now >= self._next_s:
                self._bar.refresh()
                self._next_s = now + BAR_REFRESH_S
        elif now >= self._next_s:
            self._print(line)
            self._unprinted = ""
            self._next_s = now + LINE_INTERVAL_S
        else:
            self._unprinted = line

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Prints the metrics of an evaluation on a line."""
        self._flush()
        numbers = "  ".join(f"{name} {number(value)}" for name, value in values.items())
        self._print(f"step {step:>8}  evaluation  {numbers}")

    def baselines(self, step: int, baselines: Mapping[str, Mapping[str, float]]) -> None:
        """Prints the baselines of each metric on a line."""
        self._flush()
        for metric, values in baselines.items():
            numbers = "  ".join(f"{name} {number(value)}" for name, value in values.items())
            self._print(f"step {step:>8}  baselines of {metric}  {numbers}")

    def intervals(self, step: int, intervals: Mapping[str, tuple[float, float]]) -> None:
        """Prints the intervals of all metrics on a line."""
        self._flush()
        ends = "  ".join(f"{name} [{number(low)}, {number(high)}]" for name, (low, high) in intervals.items())
        self._print(f"step {step:>8}  95 % intervals  {ends}")

    def text(self, step: int, name: str, text: str) -> None:
        """Prints a text below its name."""
        self._flush()
        self._print(f"step {step:>8}  {name}\n{text.rstrip()}")

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Prints a table below its name."""
        from rich.table import Table
        from rich.text import Text

        self._flush()
        self._print(f"step {step:>8}  {name}")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(Text(column))
        for row in rows:
            table.add_row(*(Text(_cell(cell)) for cell in row))
        self._console.print(table)

    def message(self, text: str) -> None:
        """Prints a line about the run itself."""
        self._flush()
        self._print(text)

    def finish(self, status: Status) -> None:
        """Prints what is outstanding and stops the progress bar."""
        self._flush()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _flush(self) -> None:
        """Prints the latest metrics, so that what follows stands below them."""
        if self._bar is not None:
            self._bar.refresh()
        if self._unprinted:
            self._print(self._unprinted)
            self._unprinted = ""

    def _print(self, line: str) -> None:
        try:
            self._console.print(line, markup=False, soft_wrap=True)
        except OSError as error:  # stdout is a file on a full disk: it keeps the line in its own buffer
            raise WriteDeferredError(*error.args) from error

    @cached_property
    def _console(self) -> "rich.console.Console":
        import rich.console

        if self._given_console is not None:
            return self._given_console
        console = rich.console.Console(highlight=False)
        return console if console.is_terminal else rich.console.Console(highlight=False, width=PLAIN_WIDTH)

    def _start_bar(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        # The metrics are cut off at the width of the terminal: the bar keeps its place and its width.
        bar = BarColumn(bar_width=BAR_WIDTH, table_column=Column(min_width=BAR_WIDTH, no_wrap=True))
        numbers = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        text = TextColumn("{task.description}", markup=False, table_column=numbers)
        self._bar = Progress(bar, text, console=self._console, auto_refresh=False, expand=True)
        self._task = self._bar.add_task("waiting for the first step", total=self._num_samples)
        self._bar.start()

    def _line(self, step: int, values: Mapping[str, float]) -> str:
        """Puts the step, fraction done, speed and time left first: a narrow terminal cuts off the right end."""
        parts = [f"step {step:>8}"]
        if self._num_samples and "position" in values:
            parts.append(f"{100 * values['position'] / self._num_samples:5.1f}%")
        if "samples_per_s" in values:
            parts.append(f"{number(values['samples_per_s']):>6} samples/s")
        if "eta_s" in values:
            left = time_left(values["eta_s"], values.get("eta_low_s"), values.get("eta_high_s"))
            self._eta_width = max(
                self._eta_width, len(left)
            )  # later columns keep their place when a range becomes a time
            parts.append(f"ETA {left:>{self._eta_width}}")
        for name, value in values.items():
            if name not in (*OWN_COLUMNS, *NOT_SHOWN) and (value or name not in ONLY_IF_ANY):
                parts.append(f"{name} {number(value):<9}")
        return "  ".join(parts).rstrip()


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else "" if value is None else str(value)


def number(value: float) -> str:
    """Formats a number with four significant digits.

    Args:
        value: an int is printed in full; of a float of 10,000 or more, five digits are kept.

    Returns:
        The text.

    Example:
        >>> number(0.00123456), number(12.0), number(123456)
        ('0.001235', '12', '123456')
    """
    return str(value) if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.5g}"


def duration(seconds: float) -> str:
    """Formats seconds as minutes, hours and days.

    Args:
        seconds: 0 or more.

    Returns:
        `M:SS`, `H:MM:SS` or `Dd H:MM:SS`.

    Example:
        >>> duration(75), duration(3 * 86400 + 3600)
        ('1:15', '3d 1:00:00')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def time_left(expected_s: float, low_s: float | None = None, high_s: float | None = None) -> str:
    """Formats a time, or the range in which it lies, in the unit of its upper end.

    Args:
        expected_s: the expected time, in seconds.
        low_s: the lower end of the range, in seconds; None: there is no range.
        high_s: its upper end.

    Returns:
        The expected time, or the range where it is wider than 10 %.

    Example:
        >>> time_left(75.0), time_left(75.0, 50.0, 100.0), time_left(3000.0, 400.0, 9000.0)
        ('1:15', '50-100 s', '0.1-2.5 h')
    """
    if low_s is None or high_s is None or high_s <= CERTAIN * low_s:
        return duration(expected_s)
    name, seconds = next((unit for unit in UNITS if high_s < 120 * unit[1]), UNITS[-1])
    return f"{_short(low_s / seconds)}-{_short(high_s / seconds)} {name}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")
