"""FsspecStore: any other kind of store that a package for fsspec reads, such as gs, az and hf."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from trainkit.errors import StorageError, nearest
from trainkit.storage.settings import StorageSettings
from trainkit.storage.store import Info, PassingError, Store, changed, reason_of, size_of

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_PACKAGES = {"hf": "huggingface_hub"}
_VERSIONS = (
    "ETag",
    "etag",
    "blob_id",
    "md5Hash",
    "sha",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "modified",
)
_OWN = frozenset({"http", "https", "s3", "s3a"})
"""Read by what trainkit needs anyway."""
_PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_LEAST_BYTES_PER_S = 1e6
"""Of a request that sends bytes from memory, of which nothing is heard before its end."""
_NOT_STORES = frozenset({"cached", "blockcache", "filecache", "simplecache", "reference", "dir", "data", "generic"})


def require_installed(url: str) -> None:
    """Checks that a package reads URLs of this kind; imports none.

    Raises:
        StorageError: naming what to install, or the nearest kind that is known.
    """
    from fsspec.registry import known_implementations, registry

    scheme = url.partition("://")[0].lower()
    known = (_OWN | set(known_implementations) | set(registry)) - _NOT_STORES
    if scheme not in known:
        raise StorageError(f"{scheme}:// is no kind of store that is known.{nearest(scheme, known)}")
    if scheme in registry or scheme in _OWN:
        return
    package = known_implementations[scheme]["class"].partition(".")[0]
    if find_spec(package) is None:
        extra = f"'trainkit[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else _PACKAGES.get(scheme, package)
        raise StorageError(f"{scheme}:// needs the package {package}; type: pip install {extra}")


class FsspecStore(Store):
    """A file system of fsspec, made in this process: one of its parent's refuses to work after a fork.

    Args:
        scheme: of the URLs.
        settings: how long to wait.
    """

    def __init__(self, scheme: str, settings: StorageSettings) -> None:
        import fsspec

        self._settings = settings
        try:
            self._files: Any = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
        except (ImportError, ValueError, TypeError) as error:
            raise StorageError(f"{scheme}:// cannot be opened ({reason_of(error)})") from error

    def info(self, url: str) -> Info:
        found = self._ask(url, lambda path: self._files.info(path))
        if found.get("type") == "directory":
            raise FileNotFoundError(url)
        return _info(url, found)

    def is_folder(self, url: str) -> bool:
        return bool(self._ask(url, lambda path: self._files.isdir(path)))

    def files(self, url: str) -> dict[str, Info | None]:
        found = self._ask(url, lambda path: self._files.find(path, detail=True))
        root = self._files._strip_protocol(url).rstrip("/") + "/"
        return {name[len(root) :]: _info(url, entry) for name, entry in found.items() if name.startswith(root)}

    def fetch(self, url: str, start: int, stop: int, info: Info, timeout_s: float) -> bytes:
        limit_s = min(timeout_s, self._settings.attempt_s)
        content: bytes = self._ask(url, lambda path: self._files.cat_file(path, start=start, end=stop), limit_s)
        if info.version and self.info(url) != info:  # no file system asks for a range of one version only
            changed(url)
        return content

    def put(self, url: str, content: bytes) -> None:
        limit_s = self._settings.timeout_s + len(content) / _LEAST_BYTES_PER_S
        with _naming_the_bucket(url):
            self._ask(url, lambda path: self._files.pipe_file(path, content), limit_s)

    def put_file(self, url: str, path: Path) -> None:
        from fsspec.callbacks import Callback

        class Progress(Callback):  # type: ignore[misc]  # fsspec has no annotations
            last_s = 0.0

            def call(self, *args: Any, **kwargs: Any) -> None:
                self.last_s = time.monotonic()

        size_of(path)
        progress = Progress()
        try:
            with _naming_the_bucket(url):
                self._ask(
                    url,
                    lambda there: self._files.put_file(str(path), there, callback=progress),
                    last_s=lambda: progress.last_s,
                )
        except PassingError as error:
            raise PassingError(str(error), error.wait_s, progress.last_s) from error

    def remove(self, url: str) -> None:
        def remove(path: str) -> None:
            with suppress(FileNotFoundError):
                self._files.rm_file(path)

        self._ask(url, remove)

    def _ask(
        self,
        url: str,
        request: Callable[[str], Any],
        limit_s: float | None = None,
        last_s: Callable[[], float] = lambda: 0.0,
    ) -> Any:
        """Calls in a thread of its own: not every file system has a limit, and one that stalls is left behind.

        Args:
            url: of the file.
            request: called with its path.
            limit_s: seconds that it may take, and that may lie between signs of its progress; None: the usual ones.
            last_s: when it gave the last sign, by time.monotonic.
        """
        answer: list[Any] = []
        failure: list[Exception] = []

        def call() -> None:
            try:
                answer.append(request(self._files._strip_protocol(url)))
            except Exception as error:  # raised by the caller
                failure.append(error)

        thread, started = threading.Thread(target=call, daemon=True, name="trainkit-fsspec"), time.monotonic()
        thread.start()
        while (left_s := max(started, last_s()) + (limit_s or self._settings.timeout_s) - time.monotonic()) > 0:
            thread.join(left_s)
            if not thread.is_alive():
                break
        if failure:
            _raise(url, failure[0])
        if not answer:
            raise PassingError("no answer in time")
        return answer[0]


def _info(url: str, entry: Any) -> Info:
    if entry.get("size") is None:
        raise StorageError(f"{url}: the store does not say how long the file is, so it cannot be read by ranges")
    version = next((f"{name} {entry[name]}" for name in _VERSIONS if entry.get(name)), "")
    return Info(int(entry["size"]), version)


def _raise(url: str, error: Exception) -> NoReturn:
    if isinstance(error, FileNotFoundError):
        raise error
    status = _status(error)
    if status == 404:
        raise FileNotFoundError(url) from error
    is_final = status is not None and 400 <= status < 500 and status not in _PASSING_STATUSES
    if is_final or isinstance(error, PermissionError | NotImplementedError | ValueError | TypeError):
        raise StorageError(f"{url}: the store refuses ({reason_of(error)}); check its credentials") from error
    raise PassingError(reason_of(error)) from error


@contextmanager
def _naming_the_bucket(url: str) -> Iterator[None]:
    """What is not found where a file is written is not the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{url}: there is no such bucket or container; check its name and the account") from error


def _status(error: BaseException | None) -> int | None:
    """Returns the status of HTTP that the packages' errors carry, themselves or as their cause."""
    while error is not None:
        for name in ("status_code", "code", "status"):
            value = getattr(error, name, None)
            if isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
                return int(value)
        error = error.__cause__ or error.__context__
    return None
