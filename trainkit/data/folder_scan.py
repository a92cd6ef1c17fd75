"""Scan: the files below a folder in a fixed order, and the state of each, without opening any."""

import os
import resource
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from trainkit.data.parallel import in_order
from trainkit.errors import DataError

Sorting = Literal["parts", "path"]
"""How files are sorted: as `Path`s, part by part, or as texts, in which "a.txt" is before "a/b"."""

Entered = Callable[[str, os.stat_result], object]

AT_ONCE = 512
"""Files of which the states are asked for at a time."""
_THREADS = 16  # that ask where answers are slow; where they are fast, threads only wait for the interpreter
_ASKED_AHEAD = 64  # runs, before it is looked at again how fast the answers are
_STATE = attrgetter("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")
NO_FILE = (-1, 0, 0, 0)
"""The state of a name without a file, such as a link to nothing."""


class Digest(Protocol):
    """A hash of hashlib."""

    def update(self, data: Any, /) -> None:
        """Hashes more bytes."""

    def hexdigest(self) -> str:
        """Returns the hash of all bytes, in hexadecimal digits."""


@dataclass(frozen=True)
class Run:
    """Files of one directory that follow one another in a scan.

    Args:
        directory: relative to the folder; empty for the folder itself.
        names: of the files.
        states: int64 [num_names, 4]: size in bytes, times of the last change of the content and of the status in ns,
            and inode. The time of the last change of the status (ctime) cannot be set.
    """

    directory: str
    names: list[str]
    states: NDArray[np.int64]


def add_to(whole: Digest, run: Run) -> None:
    """Hashes the names and states of files."""
    whole.update(os.fsencode("\0".join((run.directory, *run.names, ""))))
    whole.update(run.states)


def scan(root: Path, sorting: Sorting, entered: Entered | None = None) -> Iterator[Run]:
    """Lists a folder, at any depth, without hidden names; links are followed.

    Takes the memory of the names of one directory. A directory that several links lead to comes once, so that a link to
    a parent folder ends; one that may not be read is passed over.

    Args:
        root: the folder.
        sorting: the order of all files.
        entered: called with each directory, relative to the folder, and its status before it is listed.

    Yields:
        Runs of at most `AT_ONCE` files.

    Raises:
        DataError: for a directory that cannot be listed.
    """
    listed, ask = _listed(root, "", sorting, set(), entered), partial(_with_states, root)
    for directory_and_names in listed:
        before = _num_waits()
        run = ask(directory_and_names)
        is_slow = _num_waits() - before > max(AT_ONCE // 8, len(run.names)) // 4
        yield run
        if is_slow:
            yield from in_order(ask, islice(listed, _ASKED_AHEAD), _THREADS)


def _num_waits() -> int:
    """How often this thread has waited for a disk or a server; when it is stopped for other programs does not count."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def holds(root: Path, accepts: Callable[[Path], bool]) -> bool:
    """Whether a folder has a file of some kind at any depth, hidden ones left out; ends at the first one.

    Args:
        root: the folder.
        accepts: whether a file is of the kind.
    """
    left, seen = [root], set[tuple[int, int]]()
    while left:
        directory = left.pop()
        try:
            status = directory.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        left.append(directory / entry.name)
                    elif accepts(directory / entry.name):
                        return True
        except OSError:  # `scan` says of what cannot be listed
            continue
    return False


def _listed(
    root: Path, directory: str, sorting: Sorting, seen: set[tuple[int, int]], entered: Entered | None
) -> Iterator[tuple[str, list[str]]]:
    """Yields (directory, names of some of its files), in order."""
    try:
        status = (root / directory).stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        if entered is not None:
            entered(directory, status)
        files, folders = _entries(root / directory)
    except (FileNotFoundError, PermissionError):  # removed meanwhile; or another user's, such as lost+found
        return
    except OSError as error:
        raise DataError(f"data.path: {root / directory} cannot be listed ({error.strerror or error})") from error
    place: Callable[[str], str] = (lambda name: name) if sorting == "parts" else (lambda name: f"{name}/")
    below, first = f"{directory}/" if directory else "", 0
    for folder in sorted(folders, key=place):
        last = bisect_left(files, place(folder), first)
        yield from ((directory, files[start : min(last, start + AT_ONCE)]) for start in range(first, last, AT_ONCE))
        yield from _listed(root, below + folder, sorting, seen, entered)
        first = last
    yield from ((directory, files[start : start + AT_ONCE]) for start in range(first, len(files), AT_ONCE))


def _entries(directory: Path) -> tuple[list[str], list[str]]:
    """Returns the names of the files of a directory, sorted, and of its folders."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            name = entry.name
            if not name.startswith("."):
                (folders if _is_folder(entry) else files).append(name)
    files.sort()
    return files, folders


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _with_states(root: Path, listed: tuple[str, list[str]]) -> Run:
    directory, names = listed
    try:
        descriptor = os.open(root / directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # removed meanwhile
        return Run(directory, names, np.array([NO_FILE] * len(names), np.int64).reshape(-1, 4))
    try:
        try:  # without a loop in Python, which would take as long as the questions
            found = list(map(_STATE, map(partial(os.stat, dir_fd=descriptor), names)))
        except OSError:
            found = [_state_of(name, descriptor) for name in names]
    finally:
        os.close(descriptor)
    states = np.fromiter(chain.from_iterable(found), np.int64, 4 * len(names))
    return Run(directory, names, states.reshape(-1, 4))


def _state_of(name: str, descriptor: int) -> tuple[int, int, int, int]:
    try:
        status = os.stat(name, dir_fd=descriptor)
    except OSError:
        return NO_FILE
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
