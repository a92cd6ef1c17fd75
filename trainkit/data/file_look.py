"""Look: a look at every file of a folder, in which only those that changed are read."""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trainkit.data.folder_scan import Run, Sorting
from trainkit.data.grouping import Grouping
from trainkit.data.listing import ListedFiles, Listing
from trainkit.logger import logger

Verify = Literal["state", "full"]
VERIFY = get_args(Verify)

_BATCH_BYTES = 1 << 24  # of files that one thread hashes before it hands over
_BATCH_FILES = 512
_UNSETTLED = -1
_NUM_NAMED = 3

Row = tuple[str, str, str, list[int]]
"""(group, directory, name, state) of a file."""


class Look:
    """A look at every file of a folder.

    Args:
        root: the folder.
        grouping: of its files.
        known: the listing before; None: there is none.
        verify: `full`: files are read again though their states are those of `known`.
    """

    def __init__(self, root: Path, grouping: Grouping, known: Listing | None, verify: Verify) -> None:
        self._root, self._grouping, self._verify = root, grouping, verify
        self._known = (
            {} if known is None else {group: _Known(known.group(group), grouping) for group in grouping.groups}
        )
        self.is_settled = True
        self._differ: list[str] = []

    def rows(self, runs: Iterator[Run]) -> Iterator[tuple[Row, bytes | None]]:
        """Yields the files that belong to a group; with each its content where it is known."""
        for run in runs:
            directory = self._root / run.directory
            for name, state in zip(run.names, run.states.tolist(), strict=True):
                if (group := self._grouping.group_of(directory, name)) is None:
                    continue
                if group == self._grouping.unread:
                    known: bytes | None = b""
                else:
                    known = self._known[group].content(run.directory, name, state) if self._known else None
                yield (group, run.directory, name, state), known

    def contents(self, batch: list[tuple[Row, bytes | None]]) -> list[tuple[Row, bytes]]:
        """Reads the files of a batch of which the content is not known, or all. Called by threads."""
        return [self._content(row, known) for row, known in batch]

    def _content(self, row: Row, known: bytes | None) -> tuple[Row, bytes]:
        group, directory, name, state = row
        if known is not None and (self._verify == "state" or group == self._grouping.unread):
            return row, known
        began = time.time_ns()
        content = self._grouping.content(self._root / directory / name)
        if known is not None and content != known:
            self._differ.append(f"{directory}/{name}".lstrip("/"))
        if _is_unsettled(state, began):
            self.is_settled, row = False, (group, directory, name, [*state[:2], _UNSETTLED, state[3]])
        return row, content

    def report(self) -> None:
        """Logs the files that changed though their state did not."""
        if self._differ:
            differ = sorted(self._differ)
            named = ", ".join(differ[:_NUM_NAMED]) + (" ..." if len(differ) > _NUM_NAMED else "")
            files = f"{len(differ):,} files" if len(differ) > 1 else "1 file"
            said = f"{self._root}: {files} changed without a change of size or time: {named}"
            logger(__name__).warning(f"{said}; check what wrote them, or the disk")


def _is_unsettled(state: list[int], began_ns: int) -> bool:
    """Whether a file could be written after it was hashed, and have the same times: those of a disk are rounded."""
    rounded_ns = 2 * 10**9 if state[2] % 10**9 == 0 else 10**8
    return state[2] > began_ns - rounded_ns


class _Known:
    """Finds the contents of files by their paths and states, which are asked for in the order of the listing."""

    def __init__(self, files: ListedFiles, grouping: Grouping) -> None:
        self._key: Callable[[str, str], Any] = partial(_key, grouping.sorting)
        self._rows = self._all(files)
        self._next = next(self._rows, None)

    def _all(self, files: ListedFiles) -> Iterator[tuple[Any, list[int], bytes]]:
        states: NDArray[np.int64] = files.states
        for start in range(0, len(files), _BATCH_FILES):
            paths = files.relative(start, _BATCH_FILES)
            rows = zip(
                paths,
                states[start : start + _BATCH_FILES].tolist(),
                files.contents[start : start + _BATCH_FILES],
                strict=True,
            )
            for path, state, content in rows:
                directory, _, name = os.fsdecode(path).rpartition("/")
                yield self._key(directory, name), state, content

    def content(self, directory: str, name: str, state: list[int]) -> bytes | None:
        """Returns the content; None where the file is not known with this state."""
        key = self._key(directory, name)
        while self._next is not None and self._next[0] < key:
            self._next = next(self._rows, None)
        if self._next is None or self._next[0] != key or self._next[1] != state:
            return None
        return self._next[2]


def _key(sorting: Sorting, directory: str, name: str) -> Any:
    path = f"{directory}/{name}" if directory else name
    return path.split("/") if sorting == "parts" else path


def batches(rows: Iterator[tuple[Row, bytes | None]]) -> Iterator[list[tuple[Row, bytes | None]]]:
    """Groups files so that large ones are read by several threads, and small ones not one by one."""
    batch: list[tuple[Row, bytes | None]] = []
    num_bytes = 0
    for row, known in rows:
        batch.append((row, known))
        num_bytes += max(0, row[3][0]) if known is None else 0
        if len(batch) >= _BATCH_FILES or num_bytes >= _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch
