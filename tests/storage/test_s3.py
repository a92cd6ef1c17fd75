"""Files in S3, by two servers: Arrow's client, ranges, listings, writing, faults and forks."""

import os
import time

import pytest

from tests.storage.faults import faulty
from trainkit.errors import StorageError
from trainkit.storage import locate, stores
from trainkit.storage.piece_file import PIECE_BYTES

CONTENT = os.urandom(3 * PIECE_BYTES + 77)


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


@pytest.mark.parametrize("is_listed", [False, True])
def test_an_object_that_is_replaced_is_not_mixed(bucket, is_listed):
    locate(f"{bucket}/d/x").write(b"1" * len(CONTENT))
    file = locate(f"{bucket}/d").files()["x"] if is_listed else locate(f"{bucket}/d/x")
    assert file.read(0, 4) == b"1111"
    if is_listed:  # listings tell times, whole seconds of which are kept
        time.sleep(1.1)
    locate(f"{bucket}/d/x").write(b"2" * len(CONTENT))
    for _ in range(2):  # nor is it kept for the next read
        with pytest.raises(StorageError, match="d/x has changed while it was being read"):
            file.read(len(CONTENT) - 4, len(CONTENT))
    assert locate(f"{bucket}/d/x").read() == b"2" * len(CONTENT)


@pytest.mark.parametrize("fault", ["503", "cut", "stall"])
def test_a_fault_that_passes_does_not_show(bucket, server, monkeypatch, fault):
    locate(f"{bucket}/x").write(CONTENT)
    with faulty(server.port) as faults:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
        stores._begin_anew()
        faults.plan = [fault]
        assert locate(f"{bucket}/x").read() == CONTENT
        assert faults.plan == []


def test_a_store_that_is_gone_ends_without_its_secrets(bucket, server, monkeypatch):
    locate(f"{bucket}/x").write(CONTENT)
    monkeypatch.setenv("TRAINKIT_STORAGE_TIMEOUT_S", "1")
    with faulty(server.port) as faults:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
        faults.always = "503"
        with pytest.raises(StorageError, match=r"/x cannot be reached \(.*\), tried for \d s") as caught:
            locate(f"{bucket}/x").read()
        assert server.secret not in str(caught.value) and "\n" not in str(caught.value)


def test_a_fork_reads_after_its_parent(bucket):
    file = locate(f"{bucket}/x")
    file.write(CONTENT)
    assert file.read(0, 10) == CONTENT[:10]
    child = os.fork()
    if child == 0:
        os._exit(0 if file.read(2 * PIECE_BYTES, 2 * PIECE_BYTES + 9) == CONTENT[2 * PIECE_BYTES :][:9] else 1)
    assert os.waitpid(child, 0)[1] == 0
