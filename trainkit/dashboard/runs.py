"""Runs: the runs below a directory, each file of which is read once."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainkit.dashboard.status import status_of
from trainkit.errors import DataError
from trainkit.tracking import jsonl
from trainkit.tracking.metrics_file import MetricsFile
from trainkit.tracking.report.record import JSON_FILES, Record, is_inside, read_record
from trainkit.tracking.run_log import SUMMARY_FILE

MAX_DEPTH, MAX_RUNS = 3, 1000
MAX_ENCODED = 1 << 28  # bytes of pictures that are kept


@dataclass
class _Seen:
    """What is kept of a run between two requests."""

    file: MetricsFile
    record: Record | None = None
    state: tuple[object, ...] = field(default=())


class Runs:
    """The runs below a directory, by their paths in it. Links are not followed. Its methods may be called by threads.

    Args:
        root: the directory; one that is a run itself is called `.`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.encoded: dict[tuple[Path, int], str] = {}
        """Pictures, for `live_page` and `live_document`."""
        self.lock = threading.RLock()
        """To be held while `encoded` is in use."""
        self._seen: dict[str, _Seen] = {}

    def names(self) -> list[str]:
        """The paths of the runs, the one written last first."""
        found = list(self._below(self.root, "", 0))[:MAX_RUNS]
        return sorted(found, key=self._written, reverse=True)

    def record(self, name: str) -> Record:
        """Reads a run, or what was added to it since the last call.

        Args:
            name: one of `names`.

        Raises:
            DataError: it is no run, or its metrics.jsonl is damaged.
            OSError: it cannot be read.
        """
        with self.lock:
            path = self.root / name
            seen = self._seen.setdefault(name, _Seen(MetricsFile(path / jsonl.FILE_NAME)))
            state = self.state(name)
            if seen.record is None or state != seen.state:
                record = read_record(path, status=status_of(path), file=seen.file)
                if record is None:
                    raise DataError(f"{name} is no run any more")
                seen.record, seen.state = record, state
            if sum(map(len, self.encoded.values())) > MAX_ENCODED:
                self.encoded.clear()
            return seen.record

    def state(self, name: str) -> tuple[object, ...]:
        """What changes whenever something of a run has changed; cheap."""
        run_dir = self.root / name
        files = [jsonl.FILE_NAME, SUMMARY_FILE, *(f"{file}.json" for file in JSON_FILES), "checkpoints"]
        media = sorted((run_dir / "media").glob("*"))
        return (
            status_of(run_dir),
            *(_state_of(run_dir / file) for file in files),
            *(_state_of(path) for path in media),
        )

    def age_s(self, name: str) -> float:
        """Seconds since the last line of a run was written."""
        return max(0.0, time.time() - self._written(name))

    def _written(self, name: str) -> float:
        try:
            return (self.root / name / jsonl.FILE_NAME).stat().st_mtime
        except OSError:  # it was removed just now
            return 0.0

    def _below(self, directory: Path, name: str, depth: int) -> Iterator[str]:
        if is_inside(directory, directory / jsonl.FILE_NAME):
            yield name or "."
            return
        if depth == MAX_DEPTH:
            return
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError:  # it may not be read, or was removed just now
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from self._below(directory / entry.name, f"{name}/{entry.name}".lstrip("/"), depth + 1)


def _state_of(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def chosen(known: Sequence[str], asked: Sequence[str]) -> list[str] | None:
    """Those of the runs that were asked for, once each; None where one is not known, or none was asked for."""
    names = list(dict.fromkeys(asked))
    return names if names and set(names) <= set(known) else None
