"""Real servers on this machine: nginx, two of S3 (moto and s3rver), Azurite, and an emulator of Google's storage."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_NGINX = "needs nginx: apt-get install nginx-light"
NO_MOTO = "needs moto_server: pipx install 'moto[s3,server]' (botocore holds back python-dateutil, so not into ours)"
NO_S3RVER = "needs s3rver: npm install --global s3rver@3.7.1 (npm could not install it into ~/.cache/trainkit-tests)"
NO_AZURITE = "needs azurite-blob: npm install --global azurite@3.37.0 (360 MB)"

_S3RVER = "s3rver@3.7.1"
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


def azurite() -> str | None:
    return shutil.which("azurite-blob")


def s3rver() -> str | None:
    """It is small (14 MB, 4 s), so that a machine that has npm gets it when it is first asked for."""
    cache = Path.home() / ".cache/trainkit-tests"
    program = cache / _S3RVER / "node_modules/.bin/s3rver"
    npm = shutil.which("npm")
    if (found := shutil.which("s3rver")) or program.exists() or npm is None:
        return found or (str(program) if program.exists() else None)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as half:
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0", "--fetch-timeout=20000"]
        command = [npm, "install", "--prefix", f"{half}/x", *options, _S3RVER]
        try:
            done = subprocess.run(command, capture_output=True, timeout=90)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode == 0 and not (cache / _S3RVER).exists():  # another process may have been first
            Path(half, "x").replace(cache / _S3RVER)
    return str(program) if program.exists() else None


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
    """moto's S3 on a port of this machine, empty; any key and secret are right."""
    program, port = moto(), free_port()
    assert program is not None
    process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    with _running(process, port):
        yield port


@contextmanager
def second_s3(root: Path) -> Iterator[int]:
    """s3rver on a port of this machine, empty; key and secret are S3RVER, and another key is refused."""
    program, port = s3rver(), free_port()
    assert program is not None
    command = [program, "-d", str(root), "-a", "127.0.0.1", "-p", str(port), "--silent"]
    with _running(subprocess.Popen(command), port):
        yield port


@contextmanager
def azure(root: Path) -> Iterator[int]:
    """Azurite's blobs on a port of this machine, empty."""
    program, port = azurite(), free_port()
    assert program is not None
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(root), "--silent"]
    with _running(subprocess.Popen([*command, "--skipApiVersionCheck"], stdout=subprocess.DEVNULL), port):
        yield port


@contextmanager
def google(bucket: str) -> Iterator[int]:
    """An emulator of Google's storage on a port of this machine, with one bucket."""
    port = free_port()
    code = "from gcp_storage_emulator.__main__ import main; main()"
    options = ["--host=127.0.0.1", f"--port={port}", "--in-memory", f"--default-bucket={bucket}"]
    with _running(subprocess.Popen([sys.executable, "-c", code, "start", *options], stderr=subprocess.DEVNULL), port):
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
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:  # Azurite waits for connections that are kept open
            process.kill()
            process.wait(30)
