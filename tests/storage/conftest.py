"""A cache of their own and short waits for tests behind URLs, and buckets in two servers of S3."""

import os
from dataclasses import dataclass

import pytest

from tests.storage.servers import NO_MOTO, NO_S3RVER, moto, s3, s3rver, second_s3
from trainkit.storage import reader, stores


@pytest.fixture(autouse=True)
def _settings(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRAINKIT_STORAGE_TIMEOUT_S", "6")
    monkeypatch.setenv("TRAINKIT_STORAGE_CACHE_GB", "1")
    reader._begin_anew()
    stores._begin_anew()


@dataclass(frozen=True)
class Server:
    name: str
    port: int
    secret: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module", params=["moto", "s3rver"])
def server(request, tmp_path_factory):
    """One after the other: moto takes any key, s3rver only one."""
    if request.param == "moto":
        if moto() is None:
            pytest.skip(NO_MOTO)
        with s3() as port:
            yield Server("moto", port, "very-secret")
        return
    if s3rver() is None:
        pytest.skip(NO_S3RVER)
    with second_s3(tmp_path_factory.mktemp("s3rver")) as port:
        yield Server("s3rver", port, "S3RVER")


@pytest.fixture
def bucket(server, monkeypatch):
    """The URL of a bucket, which each test has for itself."""
    from pyarrow import fs

    values = {"AWS_ENDPOINT_URL": server.url, "AWS_REGION": "us-east-1"}
    values |= {"AWS_ACCESS_KEY_ID": "S3RVER", "AWS_SECRET_ACCESS_KEY": server.secret}
    if server.name == "s3rver":  # as docs/storage.md says of stores that do not know the newer checksums
        values |= {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    name = f"b-{os.urandom(4).hex()}"
    client = fs.S3FileSystem(endpoint_override=server.url, allow_bucket_creation=True)
    client.create_dir(name)
    return f"s3://{name}"
