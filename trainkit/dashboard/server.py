"""Server: the dashboard over HTTP, read-only."""

import hashlib
import json
import socket
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from trainkit.dashboard.access import Access, address_of
from trainkit.dashboard.listing import listing_document, listing_page, query_of
from trainkit.dashboard.runs import Runs, chosen
from trainkit.errors import DataError
from trainkit.tracking.report.markup import page, policy, tag
from trainkit.tracking.report.page import live_document, live_page, with_names

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache, private",
}
MAX_FIELDS = 60
TIMEOUT_S = 30.0


class Dashboard(ThreadingHTTPServer):
    """Serves the runs below a directory until `shutdown`.

    Args:
        root: the directory.
        host: to listen on.
        port: to listen on; 0: a free one.

    Raises:
        ConfigError: the host has no address.
        OSError: the port is not free.
    """

    daemon_threads = True

    def __init__(self, root: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.address_family, address, is_local = address_of(host, port)
        self.runs, self.access = Runs(root), Access(host, is_local=is_local)
        super().__init__((address, port), _Handler)
        self.port: int = self.server_address[1]

    @property
    def url(self) -> str:
        """What to open, with the token where one is needed."""
        host = str(self.server_address[0])
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        name = f"[{host}]" if ":" in host else host
        return f"http://{name}:{self.port}/" + (f"?token={self.access.token}" if self.access.token else "")


class _Handler(BaseHTTPRequestHandler):
    """Answers one request. `GET /` lists the runs, `/run?run=NAME` shows some, `/list` and `/data` what is new."""

    server: Dashboard
    server_version, sys_version = "trainkit", ""
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        """Answers, after the checks of host and token."""
        if not self.server.access.knows(self.headers.get("Host")):
            self._say(HTTPStatus.FORBIDDEN, "open the dashboard as localhost or 127.0.0.1")
            return
        address = urlsplit(self.path)
        try:
            fields = parse_qs(address.query, max_num_fields=MAX_FIELDS)
        except ValueError:
            self._say(HTTPStatus.BAD_REQUEST, f"more than {MAX_FIELDS} runs at once")
            return
        if self.server.access.is_token(fields.get("token", [""])[0]):
            self._send(HTTPStatus.SEE_OTHER, "", Set_Cookie=self.server.access.cookie(self.server.port), Location="/")
        elif not self.server.access.may_read(self.headers.get("Cookie"), self.server.port):
            self._say(HTTPStatus.FORBIDDEN, "open the address that trainkit dashboard has printed, with its token")
        else:
            self._answer(address.path, fields.get("run", []))

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self.close_connection = True
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, "a dashboard can only be read", Allow="GET, HEAD")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _answer(self, path: str, asked: Sequence[str]) -> None:
        runs = self.server.runs
        try:
            with runs.lock:  # a browser that reads slowly holds up no other
                send = self._answer_to(path, asked)
        except (DataError, OSError) as error:
            self._say(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            return
        send()

    def _answer_to(self, path: str, asked: Sequence[str]) -> Callable[[], None]:
        runs = self.server.runs
        if path == "/":
            return partial(self._send, HTTPStatus.OK, listing_page(runs))
        if path == "/list":
            return partial(self._send_json, json.dumps(listing_document(runs)))
        names = chosen(runs.names(), asked)
        if path not in ("/run", "/data") or names is None:
            return partial(self._say, HTTPStatus.NOT_FOUND, "there is no such run or page")
        state = _digest(repr([runs.state(name) for name in names]))
        if path == "/data" and self.headers.get("If-None-Match") == state:
            return partial(self._send, HTTPStatus.NOT_MODIFIED, "", ETag=state)
        records = with_names([runs.record(name) for name in names], names)
        if path == "/run":
            return partial(self._send, HTTPStatus.OK, live_page(records, f"data?{query_of(names)}", runs.encoded))
        return partial(self._send_json, json.dumps(live_document(records, runs.encoded)), state)

    def _send_json(self, text: str, etag: str | None = None) -> None:
        etag = etag or _digest(text)
        if self.headers.get("If-None-Match") == etag:
            self._send(HTTPStatus.NOT_MODIFIED, "", ETag=etag)
        else:
            self._send(HTTPStatus.OK, text, content="application/json", ETag=etag)

    def _say(self, status: HTTPStatus, text: str, **headers: str) -> None:
        self._send(
            status,
            page(status.phrase, [tag("h1", status.phrase), tag("p", text)], {"runs": [], "charts": []}),
            **headers,
        )

    def _send(self, status: HTTPStatus, text: str, *, content: str = "text/html", **headers: str) -> None:
        body = text.encode("utf-8", errors="replace")
        self.send_response(status)
        own = {"Content-Type": f"{content}; charset=utf-8", "Content-Length": str(len(body))} if body else {}
        rules = policy("'self'") + "; frame-ancestors 'none'"
        sent = {**HEADERS, "Content-Security-Policy": rules, **own, **headers}
        for name, value in sent.items():
            self.send_header(name.replace("_", "-"), value)
        if not body and status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing: pages ask every few seconds."""


def _digest(text: str) -> str:
    return f'"{hashlib.blake2b(text.encode("utf-8", errors="replace"), digest_size=12).hexdigest()}"'
