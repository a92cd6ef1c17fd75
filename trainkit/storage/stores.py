"""The store of a URL, made once in each process."""

import os
import threading

from trainkit.storage.fsspec_store import FsspecStore
from trainkit.storage.settings import StorageSettings
from trainkit.storage.store import Store

_stores: dict[tuple[str, StorageSettings], Store] = {}
_lock = threading.Lock()


def store_of(url: str, settings: StorageSettings) -> Store:
    """Returns what answers for a URL in this process; connections are not shared with another.

    Raises:
        StorageError: where its package cannot be used.
    """
    scheme = url.partition("://")[0].lower()
    with _lock:
        key = (scheme, settings)
        if key not in _stores:
            _stores[key] = _made(scheme, settings)
        return _stores[key]


def _made(scheme: str, settings: StorageSettings) -> Store:
    if scheme in ("http", "https"):
        from trainkit.storage.http_store import HttpStore

        return HttpStore(settings)
    if scheme in ("s3", "s3a"):
        from trainkit.storage.s3_store import S3Store

        return S3Store(settings)
    return FsspecStore(scheme, settings)


def _begin_anew() -> None:
    global _lock
    _lock = threading.Lock()
    _stores.clear()


os.register_at_fork(after_in_child=_begin_anew)
