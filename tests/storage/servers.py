"""Real servers on this machine: nginx (Debian's nginx-light), and moto's S3 in an environment of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_NGINX = "needs nginx: apt-get install nginx-light"
NO_MOTO = "needs moto_server: pipx install 'moto[s3,server]' (botocore holds back python-dateutil, so not into ours)"

_CONFIGURATION = """
daemon off; pid {root}/nginx.pid; error_log {root}/error.log; worker_processes 1; {user}
events {{ worker_connections 256; }}
http {{
    access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
    server {{ listen 127.0.0.1:{port}; root {files}; autoindex on; location /unlisted/ {{ autoindex off; }} }}
}}
"""


def nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def moto() -> str | None:
    return shutil.which("moto_server")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(root: Path, files: Path) -> Iterator[int]:
    """nginx on a port of this machine, with what is below `files`."""
    program, port = nginx(), free_port()
    assert program is not None
    user = "user root;" if os.getuid() == 0 else ""
    (root / "nginx.conf").write_text(_CONFIGURATION.format(root=root, files=files, port=port, user=user))
    process = subprocess.Popen(
        [program, "-p", str(root), "-c", str(root / "nginx.conf"), "-e", str(root / "error.log")]
    )
    with _running(process, port):
        yield port


@contextmanager
def s3() -> Iterator[int]:
    """moto's S3 on a port of this machine, empty."""
    program, port = moto(), free_port()
    assert program is not None
    process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    with _running(process, port):
        yield port


@contextmanager
def _running(process: "subprocess.Popen[bytes]", port: int) -> Iterator[None]:
    try:
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until, "the server does not start"
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(30)
