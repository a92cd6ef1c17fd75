"""HttpStore: files of web servers, read by ranges."""

import contextlib
import netrc
import posixpath
import time
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError

from trainkit.errors import StorageError
from trainkit.storage.settings import StorageSettings
from trainkit.storage.store import Info, PassingError, Store, changed, reason_of

_WHOLE_BYTES = 1 << 26
"""Of a file that is read whole from a server that ignores ranges."""
_PAGE_BYTES = 1 << 26
_BLOCK_BYTES = 1 << 18
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONNECTIONS = 32


class HttpStore(Store):
    """Files behind http and https URLs. User and password are those of the host in ~/.netrc.

    Args:
        settings: how long to wait.
    """

    def __init__(self, settings: StorageSettings) -> None:
        self._settings = settings
        common: dict[str, Any] = {"retries": urllib3.Retry(None, connect=0, read=0, status=0, other=0, redirect=5)}
        common["maxsize"] = _CONNECTIONS
        self._direct = urllib3.PoolManager(**common)
        self._proxies = {scheme: urllib3.ProxyManager(url, **common) for scheme, url in _proxies().items()}

    def info(self, url: str) -> Info:
        # An answer that is compressed says nothing of the file's size.
        with self._ask("HEAD", url) as answer:
            status, headers, at = answer.status, answer.headers, answer.geturl() or url
        has_length = status != 200 or "Content-Length" in headers or urlsplit(at).path.endswith("/")
        if status in (405, 501) or not has_length:
            with self._ask("GET", url, {"Range": "bytes=0-0"}) as answer:
                status, headers, at = answer.status, answer.headers, answer.geturl() or url
        if urlsplit(at).path.endswith("/"):
            raise FileNotFoundError(url)  # a folder
        _require_found(url, status, headers)
        total = headers.get("Content-Range", "").rpartition("/")[2] if status == 206 else headers.get("Content-Length")
        if total is None or not total.isdigit():
            raise StorageError(f"{url}: the server does not say how long the file is, so it cannot be read by ranges")
        return Info(int(total), headers.get("ETag") or headers.get("Last-Modified") or "")

    def is_folder(self, url: str) -> bool:
        with self._ask("HEAD", url.rstrip("/") + "/") as answer:
            if answer.status in (404, 410):
                return False
            if answer.status not in (403, 405):  # no index of it, which `list` says
                _require_found(url, answer.status, answer.headers)
            return True

    def files(self, url: str) -> dict[str, Info | None]:
        root = url.rstrip("/") + "/"
        found: dict[str, Info | None] = {}
        left, seen = [""], {""}
        while left:
            folder = left.pop()
            for name in self._links(root, folder):
                if not name.endswith("/"):
                    found[folder + name] = None
                elif folder + name not in seen:
                    seen.add(folder + name)
                    left.append(folder + name)
        return found

    def fetch(self, url: str, start: int, stop: int, info: Info, timeout_s: float) -> bytes:
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        if info.version.startswith('"'):  # a weak ETag matches nothing
            headers["If-Match"] = info.version
        until = time.monotonic() + timeout_s
        with self._ask("GET", url, headers) as answer:
            if answer.status in (412, 416) or (answer.status in (200, 206) and _is_other(answer.headers, info)):
                changed(url)
            _require_found(url, answer.status, answer.headers)
            if answer.status == 206:
                if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    raise PassingError(f"asked for bytes {start}-{stop - 1}, the server sent others")
                return _body(answer, stop - start, until)
            if info.size > _WHOLE_BYTES:
                raise StorageError(
                    f"{url}: the server ignores ranges, and sends all {info.size:,} bytes each time; serve it without "
                    f"compression (nginx: gzip off), or from a server that answers 206"
                )
            whole = _body(answer, info.size, until)
            if len(whole) != info.size:
                raise PassingError(f"the server sent {len(whole):,} bytes in place of {info.size:,}")
            return whole[start:stop]

    def put(self, url: str, content: bytes) -> None:
        raise _read_only(url)

    def put_file(self, url: str, path: Path) -> None:
        raise _read_only(url)

    def remove(self, url: str) -> None:
        raise _read_only(url)

    def _links(self, root: str, folder: str) -> list[str]:
        """Returns what the page of a folder links to in it: names, of folders with a / at the end."""
        at = urljoin(root, _quoted(folder))
        with self._ask("GET", at) as answer:
            if answer.status == 403:
                raise StorageError(f"{root}: the server lists no files there; set nginx: autoindex on, or name a file")
            _require_found(at, answer.status, answer.headers)
            page = _body(answer, _PAGE_BYTES, time.monotonic() + self._settings.timeout_s)
        links = _Links()
        links.feed(page.decode(errors="replace"))
        base, names = urlsplit(at).path, []
        for link in links.found:
            parts = urlsplit(urljoin(at, link))
            name = unquote(parts.path[len(base) :])
            is_below = parts.netloc == urlsplit(at).netloc and parts.path.startswith(base) and not parts.query
            first = name.removesuffix("/")
            if (
                is_below
                and first
                and "/" not in first
                and not first.startswith(".")
                and posixpath.normpath(first) == first
            ):
                names.append(name)
        return sorted(set(names))

    @contextlib.contextmanager
    def _ask(self, method: str, url: str, headers: Mapping[str, str] | None = None) -> Any:
        timeout = urllib3.Timeout(connect=min(5.0, self._settings.attempt_s), read=self._settings.attempt_s)
        parts = urlsplit(url)
        manager = self._direct
        if parts.scheme in self._proxies and not proxy_bypass(parts.netloc):
            manager = self._proxies[parts.scheme]
        sent = {
            "Accept-Encoding": "identity",
            "User-Agent": "trainkit",
            **_authorization(parts.hostname),
            **(headers or {}),
        }
        try:
            answer = manager.request(method, _escaped(url), headers=sent, timeout=timeout, preload_content=False)
        except (HTTPError, OSError) as error:
            raise PassingError(_reason(error)) from error
        try:
            yield answer
        finally:
            if method == "HEAD":
                answer.drain_conn()
            answer.close()  # what is left is not waited for; the connection of one that was read is kept


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _body(answer: Any, most: int, until: float) -> bytes:
    """Reads at most `most` bytes; more of them, an end before the announced one or too little time are errors."""
    blocks, num_bytes = [], 0
    try:
        while block := answer.read(_BLOCK_BYTES):
            blocks.append(block)
            num_bytes += len(block)
            if num_bytes > most:
                raise PassingError(f"the server sent more than {most:,} bytes")
            if time.monotonic() > until:
                raise PassingError(f"{num_bytes:,} bytes came in the time")
    except (HTTPError, OSError) as error:
        raise PassingError(_reason(error)) from error
    return b"".join(blocks)


def _require_found(url: str, status: int, headers: Mapping[str, str]) -> None:
    if status in (200, 206):
        return
    if status in (404, 410):
        raise FileNotFoundError(url)
    if status in _PASSING:
        wait = headers.get("Retry-After", "")
        raise PassingError(f"the server answered {status}", float(wait) if wait.isdigit() else 0.0)
    if status in (401, 403):
        raise StorageError(
            f"{url}: the server refuses access ({status}); put user and password of its host into ~/.netrc"
        )
    raise StorageError(f"{url}: the server answered {status}")


def _is_other(headers: Mapping[str, str], info: Info) -> bool:
    given = headers.get("ETag") or headers.get("Last-Modified") or ""
    return bool(given and info.version and given != info.version)


def _reason(error: BaseException) -> str:
    """Names the kind of failure: the text of urllib3's errors holds the URL and addresses of objects."""
    cause = getattr(error, "reason", None)
    if isinstance(cause, BaseException):
        return _reason(cause)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    names = {"ReadTimeoutError": "no byte came in time", "ConnectTimeoutError": "no connection in time"}
    names |= {"NewConnectionError": "no connection", "ProtocolError": "the connection was cut"}
    names |= {"IncompleteRead": "the connection was cut", "NameResolutionError": "its name is not known"}
    return names.get(type(error).__name__) or reason_of(error)


def _read_only(url: str) -> StorageError:
    return StorageError(f"{url} cannot be written: http and https are read only; write to s3:// or to a path")


def _authorization(host: str | None) -> dict[str, str]:
    with contextlib.suppress(FileNotFoundError):
        try:
            found = netrc.netrc().authenticators(host or "")
        except netrc.NetrcParseError as error:
            raise StorageError(f"~/.netrc cannot be read (line {error.lineno}: {error.msg}); correct it") from None
        if found is not None:
            return urllib3.make_headers(basic_auth=f"{found[0]}:{found[2]}")
    return {}


def _proxies() -> dict[str, str]:
    return {scheme: url for scheme, url in getproxies().items() if scheme in ("http", "https")}


def _quoted(name: str) -> str:
    return quote(name)


def _escaped(url: str) -> str:
    return quote(url, safe="%/:?&=#@!$'()*+,;~[]")
