"""Known files: what a folder held when it was last looked at, so that only files that changed since are read again."""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from trainkit.cache import REMOVED_AFTER_S, alone, asked_at, cached, cannot_write
from trainkit.data.comparisons import Compared, wanted
from trainkit.data.file_look import Look, Verify, batches
from trainkit.data.folder_scan import Run, add_to, scan
from trainkit.data.glance import FolderTimes, shows_change
from trainkit.data.grouping import Grouping
from trainkit.data.listing import Listing, ListingWriter
from trainkit.data.parallel import in_order
from trainkit.data.progress import track
from trainkit.whole_file import write_text

_FORMAT = 1  # of a listing: increase it whenever the same folder would give other files
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_SIGN_EVERY_S = 2.0

AT_START = 50_000
"""Files of a folder that a run looks at before it begins; of more, it looks at the rest while it trains."""


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """The newest look at a folder.

    Args:
        listing: the name of its directory in the cache.
        state: a hash of the names and states of all files.
        is_settled: whether a change of any file since would change its state.
        verify: how it was looked at.
        boot: of the machine.
        ended: the moment at which it ended, of `time.monotonic`.
        num_files: of the folder, whatever they are.
        is_whole: whether all files were looked at, and not only some; see `Comparisons`.
    """

    listing: str
    state: str
    is_settled: bool
    verify: Verify
    boot: str
    ended: float
    num_files: int = 0
    is_whole: bool = True


def known_files(root: Path, memory: Path, make: Callable[[], Grouping], verify: Verify, progress: bool) -> Listing:
    """Finds the files of a folder and their contents; only what changed since the last time is read.

    A file counts as changed where its size, the time of the last change of its content or of its status (ctime, which
    no program can set), or its inode is another, or where it was written as late before it was hashed as its times do
    not tell. One process of a machine looks; the others wait for it, and find what it found.

    Within `Comparisons.later`, of more than `AT_START` files that were seen before only some are looked at, and where
    these are as they were, all are compared later.

    Args:
        root: the folder.
        memory: the cache.
        make: returns the grouping of the files.
        verify: `full`: every file is read again, and those are named that changed though their state did not.
        progress: whether to show progress bars.

    Returns:
        The listing.

    Raises:
        DataError: where a directory cannot be listed.
        CacheError: where the cache cannot be written.
    """
    asked, grouping, later = asked_at(), make(), wanted()
    status = root.stat()
    place = f"{_FORMAT} {grouping.name} {root.resolve()} {status.st_ino}"
    key = hashlib.blake2b(os.fsencode(place), digest_size=16).hexdigest()
    note = memory / f"folder-{key}.json"
    with alone(memory / f".folder-{key}.lock", f"the list of the files in {root}") as sign:
        seen = _read(note)
        if seen is None or not _is_fresh(seen, asked, verify) or not (seen.is_whole or later):
            if later and seen is not None and verify == "state" and _can_wait(root, memory, seen, grouping):
                seen = replace(seen, is_whole=False)
            else:
                seen = _whole(root, memory, key, seen, grouping, verify, progress, _regularly(sign))
            _write(note, seen, verify)
    if later and not seen.is_whole:
        of = (memory / seen.listing, grouping.name, grouping.sorting, seen.state, seen.num_files)
        later.begin(Compared(root, memory, *of))
    return Listing(root, memory / seen.listing)


def _is_fresh(seen: _Seen, asked: float, verify: Verify) -> bool:
    return seen.boot == _boot() and seen.ended >= asked and verify in (seen.verify, "state")


def _can_wait(root: Path, memory: Path, seen: _Seen, grouping: Grouping) -> bool:
    """Whether most files can be looked at while a run trains: they are many, and a glance shows no change."""
    if not seen.is_settled or seen.num_files <= AT_START:
        return False
    return not shows_change(Listing(root, memory / seen.listing), grouping)


def _whole(
    root: Path,
    memory: Path,
    key: str,
    seen: _Seen | None,
    grouping: Grouping,
    verify: Verify,
    progress: bool,
    sign: Callable[[], None],
) -> _Seen:
    """Looks at all files."""
    state, num_files, times = None, None, FolderTimes()
    if seen is not None and seen.is_settled and verify == "state":
        state, num_files = _state(root, grouping, times, progress, sign)
    if seen is None or seen.state != state:
        times = FolderTimes()
        seen = _listed(root, memory, key, seen, grouping, verify, times, num_files, progress, sign)
    assert seen is not None
    try:
        times.write(Listing(root, memory / seen.listing), grouping)
    except OSError as error:
        raise cannot_write(memory, error) from error
    return replace(seen, num_files=num_files if num_files is not None else seen.num_files, is_whole=True)


def _boot() -> str:
    return _BOOT.read_text().strip() if _BOOT.is_file() else ""


def _read(note: Path) -> _Seen | None:
    """Returns the newest look; None where there is none, or its listing is gone."""
    try:
        seen = _Seen(**json.loads(note.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # none yet; or what another version wrote
        return None
    return seen if (note.parent / seen.listing).is_dir() else None


def _write(note: Path, seen: _Seen, verify: Verify) -> None:
    now = {**asdict(seen), "verify": verify, "boot": _boot(), "ended": time.monotonic()}
    try:
        write_text(note, json.dumps(now))
    except OSError as error:
        raise cannot_write(note.parent, error) from error


def _regularly(sign: Callable[[], None]) -> Callable[[], None]:
    """Calls `sign` at most every two seconds."""
    last = time.monotonic()

    def give() -> None:
        nonlocal last
        if time.monotonic() - last > _SIGN_EVERY_S:
            last = time.monotonic()
            sign()

    return give


def _state(
    root: Path, grouping: Grouping, times: FolderTimes, progress: bool, sign: Callable[[], None]
) -> tuple[str, int]:
    """Returns a hash of the names and states of all files, and their number."""
    whole, num_files = hashlib.blake2b(digest_size=16), 0
    runs = scan(root, grouping.sorting, times.add)
    for run in track(runs, "looking for changed files", enabled=progress, size=lambda run: len(run.names)):
        add_to(whole, run)
        num_files += len(run.names)
        sign()
    return whole.hexdigest(), num_files


def _listed(
    root: Path,
    memory: Path,
    key: str,
    before: _Seen | None,
    grouping: Grouping,
    verify: Verify,
    times: FolderTimes,
    num_files: int | None,
    progress: bool,
    sign: Callable[[], None],
) -> _Seen:
    """Writes a new listing, in which the contents of unchanged files are those of the one before."""
    name = f"files-{key}-{secrets.token_hex(8)}"
    known = None if before is None else Listing(root, memory / before.listing)
    whole = hashlib.blake2b(digest_size=16)
    look, num_seen = Look(root, grouping, known, verify), 0

    def hashed(runs: Iterator[Run]) -> Iterator[Run]:
        nonlocal num_seen
        for run in runs:
            num_seen += len(run.names)
            add_to(whole, run)
            yield run

    def build(directory: Path) -> None:
        rows = look.rows(hashed(scan(root, grouping.sorting, times.add)))
        with ListingWriter(directory, grouping.groups) as writer:
            read = in_order(look.contents, batches(rows))
            for batch in track(read, "comparing files", num_files, progress, size=len):
                for (group, folder, file, state), content in batch:
                    writer.append(group, folder, file, state, content)
                sign()
            writer.close(grouping.facts())

    cached(memory, name, build)
    _remove_old(memory, key, keep=name)
    look.report()
    return _Seen(
        listing=name,
        state=whole.hexdigest(),
        is_settled=look.is_settled,
        verify=verify,
        boot=_boot(),
        ended=0.0,
        num_files=num_seen,
    )


def _remove_old(memory: Path, key: str, keep: str) -> None:
    """Removes listings of a folder that no process has used for a day: those of newer ones are mapped elsewhere."""
    for path in memory.glob(f"files-{key}-*"):
        if path.name != keep and time.time() - path.stat().st_mtime > REMOVED_AFTER_S:
            shutil.rmtree(path, ignore_errors=True)
