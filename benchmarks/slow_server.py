"""nginx on this machine that answers as one far away does: each answer begins later by a given time.

The files are sent by nginx itself, as fast as it can. Before that it asks a small server (`auth_request`), which says
yes after the time: so no byte of a file passes through Python, and the delay costs next to no work.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STARTS_WITHIN_S = 30.0
_CONFIGURATION = """
daemon off; pid {root}/nginx.pid; error_log {root}/error.log; worker_processes 1; {user}
events {{ worker_connections 1024; }}
http {{
    log_format sent '$request_method $body_bytes_sent'; access_log {root}/access.log sent;
    client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
    sendfile on; tcp_nopush on; keepalive_requests 1000000;
    upstream later {{ server 127.0.0.1:{later}; keepalive 256; }}
    server {{
        listen 127.0.0.1:{port}; root {files}; autoindex on;
        location / {{ auth_request /later; }}
        location = /later {{
            internal; proxy_pass http://later; proxy_pass_request_body off; proxy_http_version 1.1;
            proxy_set_header Connection ""; proxy_set_header Content-Length "";
        }}
    }}
}}
"""


@dataclass(frozen=True)
class SlowServer:
    """A server that runs.

    Args:
        url: of the folder.
        log: a line for each answer.
    """

    url: str
    log: Path

    def sent(self) -> tuple[int, int]:
        """Returns the requests for files that were answered until now, and the bytes of the files in the answers."""
        time.sleep(0.05)  # a line is written after the last byte of its answer
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return len(lines), sum(int(sent) for method, sent in lines if method == "GET")


def nginx() -> str | None:
    """Returns the path of nginx, if it is installed."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@contextlib.contextmanager
def serving(files: Path, root: Path, latency_s: float) -> Iterator[SlowServer]:
    """Context manager: serves a folder.

    Args:
        files: the folder.
        root: an empty directory for what nginx writes.
        latency_s: by which each answer is later.
    """
    program = nginx()
    assert program is not None, "needs nginx: apt-get install nginx-light"
    port = _free_port()
    with _later(latency_s) as later:
        user = "user root;" if os.getuid() == 0 else ""
        configuration = root / "nginx.conf"
        configuration.write_text(_CONFIGURATION.format(root=root, files=files, port=port, later=later, user=user))
        command = [program, "-p", str(root), "-c", str(configuration), "-e", str(root / "error.log")]
        process = subprocess.Popen(command)
        try:
            _await(process, port)
            yield SlowServer(f"http://127.0.0.1:{port}", root / "access.log")
        finally:
            process.terminate()
            process.wait(30)


@contextlib.contextmanager
def _later(latency_s: float) -> Iterator[int]:
    """A server that says yes to everything after a time; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(latency_s)
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0, backlog=512))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(process: "subprocess.Popen[bytes]", port: int) -> None:
    until = time.monotonic() + _STARTS_WITHIN_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("nginx does not start") from None
            time.sleep(0.05)
