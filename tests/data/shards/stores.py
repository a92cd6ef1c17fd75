"""A store of S3's kind on this machine, and the settings with which it is read."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.storage.servers import s3
from trainkit.storage import reader, stores


@contextmanager
def own_settings(**values: object) -> Iterator[None]:
    """Environment variables for a while, also in a process that is kept and has those of an earlier test."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, str(value))
        reader._begin_anew()
        stores._begin_anew()
        yield


@contextmanager
def bucket() -> Iterator[str]:
    """The URL of an empty bucket."""
    from pyarrow import fs

    with s3() as port:
        endpoint, name = f"http://127.0.0.1:{port}", f"b-{os.urandom(4).hex()}"
        keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "very-secret"}
        with own_settings(AWS_ENDPOINT_URL=endpoint, AWS_REGION="us-east-1", **keys):
            fs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True).create_dir(name)
            yield f"s3://{name}"


@contextmanager
def answering(status: int) -> Iterator[str]:
    """The URL of a server that answers everything with one status."""

    class Answering(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_PUT = do_POST = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
