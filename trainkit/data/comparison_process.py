"""A process that compares the files of a folder with the last look at them; see `Comparisons`."""

import hashlib
import json
import os
import select
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from trainkit.data.comparisons import NAMED
from trainkit.data.folder_scan import Sorting, add_to, scan
from trainkit.data.grouping import Grouping
from trainkit.data.listing import Listing
from trainkit.errors import DataError

_NICE = 19
_TOLD_EVERY_S = 0.5
_PARENT = 1  # its end of the pipe
_ROWS_AT_ONCE = 4096


def main(arguments: Sequence[str]) -> None:
    """Compares a folder, and tells the parent by lines of JSON.

    Args:
        arguments: those of `Compared` but the last; the time in ns at which the run began: what changed later is
            counted apart.
    """
    root, memory, listing, grouping, sorting, state, began_ns = arguments
    os.nice(_NICE)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    started = time.monotonic()
    try:
        found = _scanned(Path(root), cast(Sorting, sorting))
        end: dict[str, Any] = {"num_changed": 0, "num_later": 0, "named": []}
        if found != state:
            end = _changes(Path(root), Path(memory), Path(listing), grouping, int(began_ns))
        _tell(end={**end, "seconds": time.monotonic() - started})
    except DataError as error:
        _tell(end={"error": str(error)})


def _tell(**what: Any) -> None:
    os.write(_PARENT, (json.dumps(what) + "\n").encode())


def _end_with_parent() -> None:
    poll = select.poll()
    poll.register(_PARENT, 0)
    poll.poll()  # an error of the pipe: nobody reads it any more
    os._exit(1)


def _scanned(root: Path, sorting: Sorting) -> str:
    whole, num, last = hashlib.blake2b(digest_size=16), 0, time.monotonic()
    for run in scan(root, sorting):
        add_to(whole, run)
        num += len(run.names)
        if time.monotonic() - last > _TOLD_EVERY_S:
            last = time.monotonic()
            _tell(num=num)
    _tell(num=num)
    return whole.hexdigest()


def _changes(root: Path, memory: Path, directory: Path, name: str, began_ns: int) -> dict[str, Any]:
    """Reads the files whose states are others, as the next start would, which finds them read."""
    from trainkit.data.image_formats import ImageFiles  # takes a second, and is seldom needed
    from trainkit.data.known_files import known_files
    from trainkit.data.text_files import TextFiles

    groupings: tuple[type[Grouping], ...] = (TextFiles, ImageFiles)
    [grouping] = [one for one in groupings if one.name == name]
    before, now = Listing(root, directory), known_files(root, memory, grouping, "state", False)
    changed, later = [0, 0], list[str]()
    named = list[str]()
    for group in grouping.groups:
        if group == grouping.unread or _digest(before, group) == _digest(now, group):
            continue
        for path, kind, changed_ns in _differences(before, now, group, grouping.sorting):
            is_later = changed_ns > began_ns
            changed[is_later] += 1
            names = later if is_later else named
            if len(names) < NAMED:
                names.append(f"{path} {kind}")
    return {"num_changed": changed[False], "num_later": changed[True], "named": named or later}


def _digest(listing: Listing, group: str) -> str:
    whole = hashlib.blake2b(digest_size=16)
    listing.group(group).contents.add_to(whole)
    return whole.hexdigest()


def _differences(before: Listing, now: Listing, group: str, sorting: Sorting) -> Iterator[tuple[str, str, int]]:
    """Yields (path, what happened, when in ns) of the files that differ between two looks."""
    old_rows, new_rows = _rows(before, group, sorting), _rows(now, group, sorting)
    old, new = next(old_rows, None), next(new_rows, None)
    while old is not None or new is not None:
        if new is None or (old is not None and old[0] < new[0]):
            assert old is not None
            yield old[1], "removed", _changed_ns(now.root / old[1])
            old = next(old_rows, None)
        elif old is None or new[0] < old[0]:
            yield new[1], "added", _changed_ns(now.root / new[1])
            new = next(new_rows, None)
        else:
            if old[2] != new[2]:
                yield new[1], "changed", _changed_ns(now.root / new[1])
            old, new = next(old_rows, None), next(new_rows, None)


def _rows(listing: Listing, group: str, sorting: Sorting) -> Iterator[tuple[Any, str, bytes]]:
    files = listing.group(group)
    for start in range(0, len(files), _ROWS_AT_ONCE):
        paths = map(os.fsdecode, files.relative(start, _ROWS_AT_ONCE))
        for path, content in zip(paths, files.contents[start : start + _ROWS_AT_ONCE], strict=True):
            yield (path.split("/") if sorting == "parts" else path), path, content


def _changed_ns(path: Path) -> int:
    """The time of the last change of a file; of one that is gone, that of the directory that it was in."""
    while True:
        try:
            return path.stat().st_ctime_ns
        except OSError:
            path = path.parent


if __name__ == "__main__":
    main(sys.argv[1:])
