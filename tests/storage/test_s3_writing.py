"""Writing to S3, by two servers: parts of large files, whole or not at all, faults, removing, credentials."""

import os
import signal
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3

from tests.storage.faults import faulty
from trainkit.errors import StorageError
from trainkit.storage import locate, stores

LARGE = 25_000_000
READ = """
import sys
from trainkit.errors import StorageError
from trainkit.storage import locate
try:
    print(locate(sys.argv[1]).read())
except StorageError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "file"
    path.write_bytes(os.urandom(LARGE))
    return path


@pytest.fixture
def parts(server, bucket):
    """Skips where the server ends uploads in parts with an answer that is not S3's."""
    url = f"{server.url}/{urlsplit(bucket).netloc}/probe"
    begun = urllib3.request("POST", f"{url}?uploads").data.decode()
    if server.name == "moto":
        upload = begun.partition("<UploadId>")[2].partition("<")[0]
        tag = urllib3.request("PUT", f"{url}?partNumber=1&uploadId={upload}", body=b"x").headers["ETag"]
        part = f"<Part><PartNumber>1</PartNumber><ETag>{tag}</ETag></Part>"
        body = f"<CompleteMultipartUpload>{part}</CompleteMultipartUpload>"
        said = urllib3.request("POST", f"{url}?uploadId={upload}", body=body).data.decode()
        if "<CompleteMultipartUploadResult" not in said:
            pytest.skip("this moto_server (5.2.0 and 5.2.1) names its answer wrongly: pipx upgrade moto")
        urllib3.request("DELETE", url)


@contextmanager
def faults_before(server):
    with faulty(server.port) as faults, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", faults.url)
        stores._begin_anew()
        yield faults
    stores._begin_anew()


@pytest.mark.usefixtures("parts")
def test_a_large_file_goes_in_parts(bucket, large, server):
    with faults_before(server) as faults:
        locate(f"{bucket}/a/x").upload(large)
        assert faults.counts["PUT"] == 3
    assert locate(f"{bucket}/a/x").read() == large.read_bytes()


@pytest.mark.usefixtures("parts")
def test_a_large_content_goes_in_parts(bucket, large):
    locate(f"{bucket}/x").write(large.read_bytes())
    assert locate(f"{bucket}/x").read() == large.read_bytes()


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.usefixtures("parts")
def test_an_upload_is_not_held_in_memory(bucket, tmp_path):
    (tmp_path / "file").write_bytes(bytes(8 * LARGE))
    locate(f"{bucket}/first").write(b"1")
    before = resident_bytes()
    tracemalloc.start()
    locate(f"{bucket}/x").upload(tmp_path / "file")
    in_python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    resident = resident_bytes() - before
    assert in_python < 3 * 10_485_760 and resident < 4 * LARGE


@pytest.mark.parametrize("size", [1000, LARGE])
@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_what_ends_within_an_upload_leaves_the_old(bucket, tmp_path, monkeypatch, size, how):
    there, path = locate(f"{bucket}/x"), tmp_path / "file"
    there.write(b"old")
    path.write_bytes(bytes(size))

    def blocks(path, num_bytes, block_bytes):
        yield bytes(min(size, block_bytes))
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt

    monkeypatch.setattr("trainkit.storage.s3_store.blocks_of", blocks)
    child = os.fork()
    if child == 0:
        try:
            there.upload(path)
        except KeyboardInterrupt:
            os._exit(7)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert (os.waitstatus_to_exitcode(status)) == (7 if how == "interrupt" else -signal.SIGKILL)
    assert locate(f"{bucket}/x").read() == b"old" and locate(bucket).names() == ["x"]


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("fault", ["503", "cut", "stall"])
def test_a_fault_in_a_part_does_not_show(bucket, large, server, monkeypatch, fault):
    monkeypatch.setenv("TRAINKIT_STORAGE_TIMEOUT_S", "3")
    with faults_before(server) as faults:
        faults.method = "PUT"
        faults.plan = ["ok", fault]
        locate(f"{bucket}/x").upload(large)
        assert faults.plan == [] and faults.counts["PUT"] == 4  # one part twice
    assert locate(f"{bucket}/x").read() == large.read_bytes()


@pytest.mark.usefixtures("parts")
def test_an_upload_to_a_store_that_is_gone_ends(bucket, large, server, monkeypatch):
    monkeypatch.setenv("TRAINKIT_STORAGE_TIMEOUT_S", "1")
    with faults_before(server) as faults:
        faults.method, faults.plan, faults.always = "PUT", ["ok"], "503"
        with pytest.raises(StorageError, match=r"/x cannot be reached \(.*\), tried for \d+ s") as caught:
            locate(f"{bucket}/x").upload(large)
    assert server.secret not in str(caught.value) and "\n" not in str(caught.value)
    assert locate(bucket).names() == []


def test_a_store_that_keeps_checksums_as_content_is_told(bucket, server, monkeypatch):
    if server.name != "s3rver":
        pytest.skip("moto knows the checksums")
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
    stores._begin_anew()
    with pytest.raises(StorageError, match="set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        locate(f"{bucket}/x").write(b"0123456789")
    assert locate(bucket).names() == []


def test_a_file_that_cannot_be_read_is_named(bucket, tmp_path):
    with pytest.raises(StorageError, match=f"{tmp_path}/none cannot be read: No such file"):
        locate(f"{bucket}/x").upload(tmp_path / "none")
    assert locate(bucket).names() == []


def test_a_file_is_removed(bucket):
    there = locate(bucket).child("b/c/d")
    locate(bucket).child("b/e").write(b"1")
    there.write(b"1")
    there.remove()
    there.remove()
    assert (there.is_file(), locate(bucket).names(), locate(bucket).child("b").is_folder()) == (False, ["b/e"], True)


@pytest.mark.parametrize("action", ["write", "remove"])
def test_without_permission_one_line_says_so(bucket, server, action):
    there = locate(f"{bucket}/x")
    there.write(b"old")
    with faults_before(server) as faults:
        faults.method, faults.always = {"write": "PUT", "remove": "DELETE"}[action], "403"
        with pytest.raises(StorageError, match=r"/x: the store refuses access; set AWS_ACCESS_KEY_ID") as caught:
            there.write(b"new") if action == "write" else there.remove()
        assert "\n" not in str(caught.value) and faults.counts[faults.method] == 1
    assert locate(f"{bucket}/x").read() == b"old"


def test_what_is_removed_without_a_right_to_write_is_no_error(bucket, server):
    there = locate(f"{bucket}/a/x")
    there.write(b"old")
    with faults_before(server) as faults:
        faults.method, faults.always = "PUT", "403"  # Arrow writes a mark of the folder that is empty now
        there.remove()
    assert locate(bucket).names() == []


def test_a_profile_and_its_file_are_used(bucket, server, monkeypatch, tmp_path):
    """Arrow's client reads the file once in a process, so the reader is one of its own."""
    (tmp_path / ".aws").mkdir()
    text = "[{}]\naws_access_key_id = {}\naws_secret_access_key = {}\n"
    profiles = text.format("default", "WRONG", "wrong-secret") + text.format("lab", "S3RVER", server.secret)
    (tmp_path / ".aws/credentials").write_text(profiles)
    locate(f"{bucket}/x").write(b"content")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with faulty(server.port) as faults:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
        for profile, key in (("lab", "S3RVER"), ("default", "WRONG")):
            faults.heads.clear()
            monkeypatch.setenv("AWS_PROFILE", profile)
            done = subprocess.run([sys.executable, "-c", READ, f"{bucket}/x"], capture_output=True, text=True)
            assert all(f"Credential={key}/" in head for head in faults.heads) and faults.heads
            if profile == "lab":
                assert done.stdout.strip() == "b'content'", done.stderr
            elif server.name == "s3rver":
                assert "the store refuses access" in done.stdout
            assert server.secret not in done.stderr and "wrong-secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("action", ["read", "write", "list"])
def test_a_wrong_key_is_one_line(bucket, server, monkeypatch, action):
    if server.name != "s3rver":
        pytest.skip("moto takes any key")
    locate(f"{bucket}/d/x").write(b"1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    stores._begin_anew()
    there = locate(f"{bucket}/d")
    with pytest.raises(StorageError, match="the store refuses access; set AWS_ACCESS_KEY_ID") as caught:
        if action == "list":
            there.names()
        elif action == "read":
            there.child("x").read()
        else:
            there.child("x").write(b"2")
    assert server.secret not in str(caught.value) and "\n" not in str(caught.value)
