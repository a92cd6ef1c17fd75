"""S3Store: S3 and what speaks its protocol, through Arrow's client, which is installed anyway and survives a fork."""

import os
import threading
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from trainkit.errors import StorageError
from trainkit.storage.s3_upload import PART_BYTES, upload
from trainkit.storage.settings import StorageSettings
from trainkit.storage.store import Info, PassingError, Store, blocks_of, changed, reason_of, size_of

_REFUSALS = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID")
_REFUSED_STATUSES = ("HTTP status 401", "HTTP status 403")
_WRITE_ATTEMPTS = 4
"""Of the request of one part: an upload that fails begins anew. With pauses of 1, 2 and 4 s between them at most."""
_OPEN_FILES = 256
"""Files whose sizes Arrow need not ask for again."""


class S3Store(Store):
    """Buckets. Credentials are found as Amazon's own tools find them: environment, profile, or the machine's role.

    Args:
        settings: how long to wait.
    """

    def __init__(self, settings: StorageSettings) -> None:
        from pyarrow import fs

        given: dict[str, Any] = {}
        if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
            given["endpoint_override"] = endpoint  # of these variables Arrow knows none
        if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            given["region"] = region
        given |= {"anonymous": os.environ.get("TRAINKIT_S3_ANONYMOUS") == "1"}
        # The SDK takes it as a time without a byte, also where Arrow's documentation says that it is ignored.
        given |= {"request_timeout": settings.attempt_s, "connect_timeout": min(5.0, settings.attempt_s)}
        self._client = fs.S3FileSystem(retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1), **given)
        self._writer = fs.S3FileSystem(
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_WRITE_ATTEMPTS),
            allow_delayed_open=True,  # a file below 5 MB is one request
            **given,
        )
        self._open: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def info(self, url: str) -> Info:
        try:
            file = self._client.open_input_file(_path(url))
            return Info(file.size(), _version(file))
        except OSError as error:
            _raise(url, error)

    def is_folder(self, url: str) -> bool:
        from pyarrow import fs

        try:
            found = self._client.get_file_info(_path(url))
        except OSError as error:
            _raise(url, error)
        return bool(found.type == fs.FileType.Directory)

    def files(self, url: str) -> dict[str, Info | None]:
        from pyarrow import fs

        root = _path(url)
        try:
            entries = self._client.get_file_info(fs.FileSelector(root, recursive=True))
        except OSError as error:
            _raise(url, error)
        files = (entry for entry in entries if entry.type == fs.FileType.File)
        return {entry.path[len(root) + 1 :]: Info(entry.size, f"modified {entry.mtime_ns}") for entry in files}

    def fetch(self, url: str, start: int, stop: int, info: Info, timeout_s: float) -> bytes:
        try:
            content: bytes = self._file(url, info).read_at(stop - start, start)
            now = self._client.open_input_file(_path(url))  # Arrow cannot ask for a range of one version only
        except OSError as error:
            self._forget(url, info)
            _raise(url, error)
        if not _is_of(now, info):
            self._forget(url, info)
            changed(url)
        return content

    def put(self, url: str, content: bytes) -> None:
        view = memoryview(content)
        self._write(url, (view[at : at + PART_BYTES] for at in range(0, len(content), PART_BYTES)), len(content))

    def put_file(self, url: str, path: Path) -> None:
        num_bytes = size_of(path)
        self._write(url, blocks_of(path, num_bytes, PART_BYTES), num_bytes)

    def remove(self, url: str) -> None:
        try:
            self._client.delete_file(_path(url))
        except FileNotFoundError:
            return
        except OSError as error:
            if self._is_gone(url):  # Arrow also writes a mark of a folder that became empty, which is of no use here
                return
            _raise(url, error)

    def _is_gone(self, url: str) -> bool:
        from pyarrow import fs

        try:
            return bool(self._client.get_file_info(_path(url)).type == fs.FileType.NotFound)
        except OSError as error:
            _raise(url, error)

    def _write(self, url: str, blocks: Iterable[bytes | memoryview], num_bytes: int) -> None:
        try:
            upload(self._writer, _path(url), blocks)
            size = self._writer.open_input_file(_path(url)).size()
        except OSError as error:
            _raise(url, error)
        if size != num_bytes:
            self.remove(url)
            raise StorageError(
                f"{url}: the store kept {size:,} bytes in place of {num_bytes:,}, which was removed again: it does not "
                f"know the checksums that Amazon's clients send; set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
            )

    def _file(self, url: str, info: Info) -> Any:
        key = (url, info.version)
        with self._lock:
            found = self._open.get(key)
        if found is None:
            found = self._client.open_input_file(_path(url))
            if not _is_of(found, info):
                changed(url)
            with self._lock:
                while len(self._open) >= _OPEN_FILES:
                    self._open.pop(next(iter(self._open)))
                self._open[key] = found
        return found

    def _forget(self, url: str, info: Info) -> None:
        with self._lock:
            self._open.pop((url, info.version), None)


def _version(file: Any) -> str:
    metadata = file.metadata()
    version = metadata.get("ETag") or metadata.get("Last-Modified") or b""
    return version.decode() if isinstance(version, bytes) else str(version)


def _is_of(file: Any, info: Info) -> bool:
    """Whether an open file is the one that `info` was of: listings know a time in place of the ETag."""
    if file.size() != info.size:
        return False
    if info.version.startswith("modified "):
        said = file.metadata().get("Last-Modified", b"").decode()
        listed_s = int(info.version.removeprefix("modified ")) // 10**9
        return not said or int(datetime.fromisoformat(said).timestamp()) == listed_s
    return _version(file) == info.version


def _path(url: str) -> str:
    return url.partition("://")[2].strip("/")


def _raise(url: str, error: OSError) -> NoReturn:
    said = str(error)
    if isinstance(error, FileNotFoundError) or "NO_SUCH_KEY" in said or said.startswith("Not a regular file"):
        raise FileNotFoundError(url) from error
    if "NO_SUCH_BUCKET" in said:
        bucket = _path(url).partition("/")[0]
        raise StorageError(f"{url}: there is no bucket {bucket}; check its name and AWS_ENDPOINT_URL") from error
    if any(refusal in said for refusal in (*_REFUSALS, *_REFUSED_STATUSES)):
        raise StorageError(
            f"{url}: the store refuses access; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, "
            f"or TRAINKIT_S3_ANONYMOUS=1 for a public bucket"
        ) from error
    raise PassingError(reason_of(error)) from error
