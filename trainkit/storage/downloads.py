"""Downloads: whole files of stores, copied to this machine by ranges at once, of which no piece is kept."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainkit.errors import StorageError
from trainkit.storage.persist import persist
from trainkit.storage.remote_file import File
from trainkit.storage.settings import StorageSettings
from trainkit.storage.store import PassingError
from trainkit.storage.stores import store_of

_RANGE_BYTES = 1 << 23
_THREADS = 8


def download(file: File, path: Path, settings: StorageSettings) -> None:
    """Writes a file of a store to `path`; where that fails, nothing is left there.

    Args:
        file: as the store has it; a change meanwhile is an error where the store says so.
        path: of the copy.
        settings: how long the store is waited for.

    Raises:
        StorageError: where it cannot be read, or `path` cannot be written.
    """
    try:
        with path.open("wb") as target:
            target.truncate(file.info.size)
            _fill(file, target.fileno(), settings)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _fill(file: File, descriptor: int, settings: StorageSettings) -> None:
    has_failed = threading.Event()

    def copy(start: int) -> None:
        if has_failed.is_set():
            return
        stop = min(start + _RANGE_BYTES, file.info.size)
        try:
            content = persist(file.url, settings, lambda left_s: _range(file, start, stop, settings, left_s))
            os.pwrite(descriptor, content, start)
        except BaseException:
            has_failed.set()  # the others need not wait for the store as well
            raise

    with ThreadPoolExecutor(_THREADS, "trainkit-download") as threads:
        for done in [threads.submit(copy, start) for start in range(0, file.info.size, _RANGE_BYTES)]:
            done.result()


def _range(file: File, start: int, stop: int, settings: StorageSettings, left_s: float) -> bytes:
    content = store_of(file.url, settings).fetch(file.url, start, stop, file.info, left_s)
    if len(content) == file.info.size > stop - start:
        content = content[start:stop]  # of a store that ignores ranges
    if len(content) != stop - start:
        raise PassingError(f"{len(content):,} bytes came of {stop - start:,}")
    return content
