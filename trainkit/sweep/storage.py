"""Storage: where Optuna keeps the trials of a sweep, a journal file or a database."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

JOURNAL = "study.journal"


def open_storage(directory: Path, storage: str | None) -> "BaseStorage":
    """Opens Optuna's storage; the caller holds the sweep's lock.

    Args:
        directory: of the sweep.
        storage: the URL of a database; None: the journal in the directory.

    Raises:
        ConfigError: it cannot be opened.
    """
    from optuna import storages
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if storage is not None:
        try:
            return storages.RDBStorage(storage)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"--storage {without_password(storage)}: cannot be opened: {reason}") from error
    path = directory / JOURNAL
    return storages.JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


def mend_journal(path: Path) -> None:
    """Removes what a driver has left that was killed while it wrote the journal; the caller holds the sweep's lock.

    To a line that is not complete Optuna appends, and cannot read the file any more. All who write hold the sweep's
    lock: the journal's own lock then belongs to nobody.

    Args:
        path: of the journal.
    """
    Path(f"{path}.lock").unlink(missing_ok=True)
    with suppress(FileNotFoundError), path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def without_password(url: str | None) -> str | None:
    """A URL as it may be shown; PostgreSQL's own PGPASSWORD or ~/.pgpass has the password then."""
    password = urlsplit(url).password if url is not None else None
    return url.replace(f":{password}@", "@") if url is not None and password else url
