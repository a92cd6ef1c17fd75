"""Files in Azure's and Google's storage, by servers on this machine: what adlfs and gcsfs do with them."""

import os
from importlib.util import find_spec
from urllib.parse import urlsplit

import pytest

from tests.storage.servers import NO_AZURITE, azure, azurite, google
from trainkit.errors import StorageError
from trainkit.storage import locate, stores
from trainkit.storage.piece_file import PIECE_BYTES

CONTENT = os.urandom(2 * PIECE_BYTES + 77)
LARGE = os.urandom(6_000_000)
# The key of Azurite's only account, as its documentation prints it.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="module", params=["gs", "az"])
def account(request, tmp_path_factory):
    """The URL of a bucket, and the variables with which a user reaches it."""
    if request.param == "gs":
        for module, package in (("gcsfs", "gcsfs"), ("gcp_storage_emulator", "gcp-storage-emulator")):
            if find_spec(module) is None:
                pytest.skip(f"needs {package}: pip install {package}")
        with google("bucket") as port:
            # Without credentials gcsfs cannot ask which kind of bucket it is, and says so at each request.
            yield (
                "gs://bucket",
                {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"},
            )
        return
    if find_spec("adlfs") is None:
        pytest.skip("needs adlfs: pip install adlfs")
    if azurite() is None:
        pytest.skip(NO_AZURITE)
    from azure.storage.blob import BlobServiceClient

    with azure(tmp_path_factory.mktemp("azurite")) as port:
        said = f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={KEY};"
        said += f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
        with BlobServiceClient.from_connection_string(said) as client:
            client.create_container("bucket")
        yield "az://bucket", {"AZURE_STORAGE_CONNECTION_STRING": said}


@pytest.fixture
def folder(account, monkeypatch):
    """A folder, which each test has for itself."""
    url, variables = account
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRAINKIT_STORAGE_TIMEOUT_S", "20")
    stores._begin_anew()
    yield locate(f"{url}/{os.urandom(4).hex()}")
    stores._begin_anew()


def test_what_is_written_is_listed_and_read_by_ranges(folder):
    folder.child("a/x.bin").write(b"first")
    folder.child("a/x.bin").write(CONTENT)
    folder.child("é.txt").write(b"")
    file = locate(folder.url).child("a/x.bin")
    assert file.read_ranges([(5, 5), (PIECE_BYTES - 1, PIECE_BYTES + 1)]) == [b"", CONTENT[PIECE_BYTES - 1 :][:2]]
    assert file.read() == CONTENT and folder.child("é.txt").read() == b""
    assert {name: found.size() for name, found in folder.files().items()} == {"a/x.bin": len(CONTENT), "é.txt": 0}
    assert folder.files()["a/x.bin"].version() == file.version() != ""
    assert (folder.is_folder(), folder.is_file(), file.is_file(), file.is_folder()) == (True, False, True, False)


def test_a_file_is_copied_over_another_and_removed(folder, tmp_path):
    (tmp_path / "a").write_bytes(LARGE)
    there = folder.child("b/c")
    there.write(b"old")
    there.upload(tmp_path / "a")
    assert there.read() == LARGE
    there.remove()
    there.remove()
    assert (there.is_file(), folder.names()) == (False, [])


def test_a_file_that_is_replaced_is_not_mixed(folder):
    folder.child("x").write(b"1" * len(CONTENT))
    file = locate(folder.url).child("x")
    assert file.read(0, 4) == b"1111"
    folder.child("x").write(b"2" * len(CONTENT))
    for _ in range(2):
        with pytest.raises(StorageError, match="x has changed while it was being read"):
            file.read(len(CONTENT) - 4, len(CONTENT))


def test_what_is_not_there_is_named_at_once(folder, tmp_path):
    with pytest.raises(StorageError, match="/none does not exist"):
        folder.child("none").read()
    other = locate(f"{urlsplit(folder.url).scheme}://nobody/x")
    assert not other.is_file()
    (tmp_path / "a").write_bytes(b"a")
    for write in (lambda: other.write(b"a"), lambda: other.upload(tmp_path / "a")):
        with pytest.raises(StorageError, match="/x: there is no such bucket or container") as caught:
            write()
        assert "\n" not in str(caught.value)


def test_a_wrong_key_is_one_line_without_it(folder, monkeypatch):
    said = os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
    if said is None:
        pytest.skip("the emulator of Google's storage takes any user")
    wrong = "A" * (len(KEY) - 2) + "=="
    folder.child("x").write(b"1")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", said.replace(KEY, wrong))
    stores._begin_anew()
    for ask in (folder.child("x").read, folder.names, lambda: folder.child("x").write(b"2")):
        with pytest.raises(StorageError, match="the store refuses") as caught:
            ask()
        assert wrong not in str(caught.value) and "\n" not in str(caught.value)
