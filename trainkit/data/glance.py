"""Glance: a bounded look at a folder of very many files: the times of its directories, and the states of some files."""

import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trainkit.data.grouping import Grouping
from trainkit.data.listing import ListedFiles, Listing
from trainkit.whole_file import write_text

MOST_FOLDERS = 16_384
MOST_FILES = 2_048
WITHIN_S = 0.3
_FILE = "folders.json"
_ASKED_AT_ONCE = 64


class FolderTimes:
    """Keeps the times of the directories of a scan: of all up to `MOST_FOLDERS`, of more an even choice."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, list[int] | None]] = []
        self._num = 0
        self._draw = random.Random(0)  # the choice is kept with the listing, so it need not be the same anywhere else

    def add(self, directory: str, status: os.stat_result) -> None:
        """Adds a directory, relative to the folder, with its status before it was listed."""
        self._num += 1
        if len(self._kept) < MOST_FOLDERS:
            self._kept.append((directory, _times(status)))
        elif (place := self._draw.randrange(self._num)) < MOST_FOLDERS:
            self._kept[place] = directory, _times(status)

    def write(self, listing: Listing, grouping: Grouping) -> None:
        """Keeps them beside a listing, in place of those of an earlier scan.

        Args:
            listing: of the folder.
            grouping: of its files; what it reads beside them is kept, too.
        """
        beside = [(name, _times_of(listing.root / name)) for name in grouping.beside]
        write_text(listing.directory / _FILE, json.dumps([*beside, *self._kept]))


def shows_change(listing: Listing, grouping: Grouping) -> bool:
    """Looks at a folder for at most `WITHIN_S`: at the times of its directories, and at the states of some files.

    A directory's times tell of names that were added, removed or renamed, and of most editors, which replace a file.
    They do not tell of a file that is written in place: of these it finds only what is among the files that it asks.

    Args:
        listing: of the last whole look.
        grouping: of the files.

    Returns:
        Whether something has changed since; true where the times of directories are not known.
    """
    path = listing.directory / _FILE
    if not path.is_file():
        return True
    folders = json.loads(path.read_text(encoding="utf-8"))
    end = time.monotonic() + WITHIN_S
    draw = np.random.default_rng()  # another start looks at other files
    first, rest = folders[: len(grouping.beside)], folders[len(grouping.beside) :]
    if any(_times_of(listing.root / name) != times for name, times in first):
        return True
    for number, place in enumerate(draw.permutation(len(rest)).tolist()):
        name, times = rest[place]
        if _times_of(listing.root / name) != times:
            return True
        if number % _ASKED_AT_ONCE == 0 and time.monotonic() > end:
            return False
    groups = [listing.group(group) for group in grouping.groups if group != grouping.unread]
    for number, (files, row) in enumerate(_some(groups, draw)):
        if not _is_unchanged(files, row):
            return True
        if number % _ASKED_AT_ONCE == 0 and time.monotonic() > end:
            return False
    return False


def _some(groups: Sequence[ListedFiles], draw: np.random.Generator) -> Iterator[tuple[ListedFiles, int]]:
    bounds = np.cumsum([0, *map(len, groups)])
    num = int(bounds[-1])
    # A permutation of very many would take memory.
    rows = draw.permutation(num) if num <= MOST_FILES else draw.integers(0, num, MOST_FILES)
    for row in rows.tolist():
        group = int(np.searchsorted(bounds, row, side="right")) - 1
        yield groups[group], row - int(bounds[group])


def _is_unchanged(files: ListedFiles, row: int) -> bool:
    size, *times = files.states[row].tolist()
    try:
        status = files[row].stat()
    except OSError:
        return bool(size < 0)
    now: list[int] = [status.st_size, *_times(status)]
    return now == [size, *times]


def _times_of(path: Path) -> list[int] | None:
    try:
        return _times(path.stat())
    except OSError:  # there is none; or it has become another user's, as a whole look finds
        return None


def _times(status: os.stat_result) -> list[int]:
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
