"""TensorBoard: event files, on request."""

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.errors import ConfigError
from trainkit.tracking.tracker import Run, Status, Tracker, WriteDeferredError, by_end

MAX_UNFLUSHED = 1000
RETRY_S = 10.0
_FRAME_BYTES = 16  # a record's overhead: the length of its event and two checksums

Add = Callable[[Any], None]


class TensorBoard(Tracker):
    """Writes `tensorboard/` in the run directory. After a resume, later steps of earlier processes are purged.

    Raises:
        ConfigError: where the package tensorboard is not installed.
    """

    def __init__(self) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError("tracking.tensorboard=true needs the package tensorboard: pip install tensorboard")
        self._writer: Any = None
        self._directory = ""
        self._unflushed: list[tuple[int, Add]] = []
        self._retry_s: float | None = None

    def start(self, run: Run) -> None:
        """Opens an event file in the run directory, which purges the steps after the resumed one."""
        self._directory = str(run.directory / "tensorboard")
        self._unflushed, self._retry_s = [], None
        self._open(0 if run.resumed_step is None else run.resumed_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars, flushed every 1000."""
        for name, value in values.items():
            self._unflushed.append((step, partial(_add_scalar, name, value, step)))
        self._write(len(values), flush=len(self._unflushed) >= MAX_UNFLUSHED)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars, and flushes."""
        self._unflushed += [(step, partial(_add_scalar, name, value, step)) for name, value in values.items()]
        self._write(len(values), flush=True)

    def intervals(self, step: int, intervals: Mapping[str, tuple[float, float]]) -> None:
        """Writes the ends of intervals as scalars NAME_low and NAME_high, and flushes."""
        self.evaluation(step, by_end(intervals))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes a picture, and flushes."""
        self._unflushed.append((step, lambda writer: writer.add_image(name, image, step, dataformats="HWC")))
        self._write(1, flush=True)

    def text(self, step: int, name: str, text: str) -> None:
        """Writes a text, displayed verbatim."""
        verbatim = "\n".join(f"    {line}" for line in text.splitlines())  # indented: verbatim in Markdown
        self._unflushed.append((step, lambda writer: writer.add_text(name, verbatim, step)))
        self._write(1)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Writes a table as Markdown."""
        lines = [columns, ["---"] * len(columns), *rows]
        cells = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
        markdown = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        self._unflushed.append((step, lambda writer: writer.add_text(name, markdown, step)))
        self._write(1)

    def finish(self, status: Status) -> None:
        """Flushes and closes the event file."""
        self._retry_s = self._retry_s and 0.0
        self._write(0, flush=True)
        self._writer.close()

    def _open(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        before = set(Path(self._directory).glob("*"))
        _wait_for_a_later_second(before)
        self._writer = SummaryWriter(self._directory, purge_step=purge_step)
        self._writer.flush()
        made = set(Path(self._directory).glob("*")) - before
        if not made:
            raise OSError(errno.ENOSPC, f"no file could be made in {self._directory}")
        (self._file,) = made
        self._first_bytes = self._safe_bytes = self._num_bytes = self._file.stat().st_size
        add_event = self._writer.file_writer.add_event

        def add_counted(event: Any, step: Any = None, walltime: float | None = None) -> None:
            add_event(event, step, walltime)
            self._num_bytes += event.ByteSize() + _FRAME_BYTES

        self._writer.file_writer.add_event = add_counted

    def _cut(self) -> None:
        """Truncates the last file to what was flushed: the rest is written to the next one."""
        if self._safe_bytes > self._first_bytes:
            os.truncate(self._file, self._safe_bytes)
        else:
            self._file.unlink(missing_ok=True)

    def _write(self, num_new: int, *, flush: bool = False) -> None:
        """Writes the last `num_new` unflushed events, or all of them to a new file if the last write failed.

        TensorBoard writes in a thread that never recovers, and drops the events that it was given.
        """
        if self._retry_s is not None and time.monotonic() < self._retry_s:
            raise WriteDeferredError("tensorboard/ could not be written a moment ago")
        try:
            if self._retry_s is not None:
                with suppress(OSError):
                    self._writer.close()
                self._cut()
                self._open(None)
                num_new, flush = len(self._unflushed), True
            for _, add in self._unflushed[len(self._unflushed) - num_new :]:
                add(self._writer)
            if flush:
                self._writer.flush()
                # Its thread counts an event as written before it fails to write it: only the file shows the failure.
                if (num_bytes := self._file.stat().st_size) < self._num_bytes:
                    raise OSError(errno.ENOSPC, f"{self._num_bytes - num_bytes} bytes of {self._file.name} are missing")
                self._unflushed, self._safe_bytes = [], self._num_bytes
            self._retry_s, self.is_behind = None, False
        except OSError as error:
            self.is_behind = True
            self._retry_s = time.monotonic() + RETRY_S
            raise WriteDeferredError(*error.args) from error


def _wait_for_a_later_second(files: Iterable[Path]) -> None:
    """Waits until a new file sorts after `files`.

    TensorBoard reads the files in the order of their names, which contain the second, then a counter without leading
    zeros: file 10 would be read before file 9 of the same second, and its steps purged.
    """
    while any(file.name.startswith(f"events.out.tfevents.{int(time.time()):010d}.") for file in files):
        time.sleep(0.05)


def _add_scalar(name: str, value: float, step: int, writer: Any) -> None:
    writer.add_scalar(name, value, step)
