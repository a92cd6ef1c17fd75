"""Files in S3, by moto's server: Arrow's client, ranges, listings, writing, faults and forks."""

import os

import pytest

from tests.storage.faults import faulty
from tests.storage.servers import NO_MOTO, moto, s3
from trainkit.errors import StorageError
from trainkit.storage import locate
from trainkit.storage.piece_file import PIECE_BYTES

pytestmark = pytest.mark.skipif(moto() is None, reason=NO_MOTO)

CONTENT = os.urandom(3 * PIECE_BYTES + 77)


@pytest.fixture(scope="module")
def port():
    with s3() as port:
        yield port


@pytest.fixture
def bucket(port, monkeypatch, tmp_path):
    """The URL of a bucket, which each test has for itself."""
    from pyarrow import fs

    values = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_REGION": "us-east-1"}
    values |= {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "very-secret"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    name = f"b-{os.urandom(4).hex()}"
    client = fs.S3FileSystem(endpoint_override=values["AWS_ENDPOINT_URL"], allow_bucket_creation=True)
    client.create_dir(name)
    return f"s3://{name}"


def test_what_is_written_is_read_by_ranges(bucket):
    folder = locate(bucket).child("data set")
    folder.child("a/x.bin").write(CONTENT)
    folder.child("é.txt").write(b"")
    assert folder.names() == ["a/x.bin", "é.txt"]
    again = locate(bucket).child("data set")
    file = again.child("a/x.bin")
    assert file.read_ranges([(5, 5), (PIECE_BYTES - 1, PIECE_BYTES + 1)]) == [b"", CONTENT[PIECE_BYTES - 1 :][:2]]
    assert file.read() == CONTENT and again.child("é.txt").read() == b""
    assert {name: found.size() for name, found in again.files().items()} == {"a/x.bin": len(CONTENT), "é.txt": 0}
    assert (again.is_folder(), again.is_file(), file.is_file(), file.is_folder()) == (True, False, True, False)


def test_a_file_is_copied_and_removed(bucket, tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    there = locate(bucket).child("b/c")
    there.upload(tmp_path / "a")
    assert (there.read(), there.is_file()) == (CONTENT, True)
    there.remove()
    there.remove()
    assert (there.is_file(), locate(bucket).names()) == (False, [])


@pytest.mark.parametrize("name", ["", "gone", "gone/deeper"])
def test_what_is_not_there_is_no_file(bucket, name):
    location = locate(bucket).child(name) if name else locate(bucket)
    assert not location.is_file()
    with pytest.raises(StorageError, match="does not exist"):
        location.read()


def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(StorageError, match="there is no bucket b-none; check its name and AWS_ENDPOINT_URL"):
        locate("s3://b-none/x").names()


def test_a_changed_object_is_not_mixed_with_the_old(bucket):
    file = locate(f"{bucket}/x")
    file.write(CONTENT)
    assert file.read(0, 4) == CONTENT[:4]
    other = bytes(len(CONTENT))
    locate(f"{bucket}/x").write(other)
    assert locate(f"{bucket}/x").read(0, 4) == bytes(4)
    assert locate(f"{bucket}/x").read() == other


@pytest.mark.parametrize("fault", ["503", "cut", "stall"])
def test_a_fault_that_passes_does_not_show(bucket, port, monkeypatch, fault):
    locate(f"{bucket}/x").write(CONTENT)
    with faulty(port) as faults:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
        from trainkit.storage import stores

        stores._begin_anew()
        faults.plan = [fault]
        assert locate(f"{bucket}/x").read() == CONTENT
        assert faults.plan == []


def test_a_store_that_is_gone_ends_without_its_secrets(bucket, port, monkeypatch):
    locate(f"{bucket}/x").write(CONTENT)
    monkeypatch.setenv("TRAINKIT_STORAGE_TIMEOUT_S", "1")
    with faulty(port) as faults:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
        faults.always = "503"
        with pytest.raises(StorageError, match=r"/x cannot be reached \(.*\), tried for \d s") as caught:
            locate(f"{bucket}/x").read()
        assert "very-secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_fork_reads_after_its_parent(bucket):
    file = locate(f"{bucket}/x")
    file.write(CONTENT)
    assert file.read(0, 10) == CONTENT[:10]
    child = os.fork()
    if child == 0:
        os._exit(0 if file.read(2 * PIECE_BYTES, 2 * PIECE_BYTES + 9) == CONTENT[2 * PIECE_BYTES :][:9] else 1)
    assert os.waitpid(child, 0)[1] == 0
