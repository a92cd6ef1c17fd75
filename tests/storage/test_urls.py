"""Which URLs are taken, and that credentials in them are not, nor shown."""

import time
from importlib import import_module

import pytest

from trainkit.errors import ConfigError, StorageError
from trainkit.public_url import carries_credentials, redacted
from trainkit.storage import locate

SECRET = "hunter2"
WITH_CREDENTIALS = [
    f"https://me:{SECRET}@host/data",
    f"https://{SECRET}@host/data",
    f"https://host/x.zip?X-Amz-Algorithm=AWS4&X-Amz-Signature={SECRET}",
    f"https://account.blob.core.windows.net/c/x?sv=2022&sig={SECRET}",
    f"https://host/x?access_token={SECRET}&part=1",
    f"s3://key:{SECRET}@bucket/x",
]


@pytest.mark.parametrize("url", WITH_CREDENTIALS)
def test_credentials_in_a_url_are_refused_and_not_shown(url):
    assert carries_credentials(url) and SECRET not in redacted(url)
    with pytest.raises(StorageError, match="must not carry credentials") as caught:
        locate(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://bucket/a@b", "https://host/a?part=2", "https://host:8080/a", "gs://b/x#1"])
def test_other_urls_stay_as_they_are(url):
    assert not carries_credentials(url) and redacted(url) == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://bucket/x", r"needs the package gcsfs; type: pip install 'trainkit\[gcs\]'"),
        ("az://bucket/x", r"needs the package adlfs; type: pip install 'trainkit\[azure\]'"),
        ("htp://host/x", "htp:// is no kind of store that is known. Did you mean 'http'?"),
        ("simplecache://x", "is no kind of store"),
    ],
)
def test_a_store_that_cannot_be_read_says_what_to_type(url, message, monkeypatch):
    monkeypatch.setattr("trainkit.storage.fsspec_store.find_spec", lambda package: None)
    monkeypatch.setattr(import_module("fsspec.registry"), "registry", {})  # those that another test has used
    with pytest.raises(StorageError, match=message):
        locate(url)


@pytest.mark.parametrize(
    ("name", "value"),
    [("TIMEOUT_S", "0"), ("TIMEOUT_S", "soon"), ("CACHE_GB", "-1"), ("CACHE_GB", "nan"), ("CACHE_GB", "inf")],
)
def test_a_setting_that_is_no_number_is_named(name, value, monkeypatch):
    monkeypatch.setenv(f"TRAINKIT_STORAGE_{name}", value)
    with pytest.raises(ConfigError, match=f"TRAINKIT_STORAGE_{name}={value}: must be"):
        locate("https://host/x")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "..", ".", "a//b", ""])
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(StorageError, match="names no file below it"):
        locate("https://host/data").child(name)


def test_any_file_system_of_fsspec_is_read():
    folder = locate("memory://set")
    folder.child("a/x").write(b"0123456789")
    folder.child("a/.y").write(b"")
    assert folder.names() == ["a/x"]
    file = locate("memory://set/a/x")
    assert (file.size(), file.read(2, 5), file.read_ranges([(0, 0), (9, 10)])) == (10, b"234", [b"", b"9"])
    assert (folder.is_folder(), folder.is_file(), file.is_file(), folder.child("b").is_file()) == (
        True,
        False,
        True,
        False,
    )


def test_a_file_is_copied_and_removed_behind_a_url(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    there = locate("memory://copies/b/c")
    there.upload(tmp_path / "a")
    assert (there.read(), there.is_file()) == (b"abc", True)
    there.remove()
    there.remove()
    assert not there.is_file()


def test_a_file_url_is_a_path_of_this_machine(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert locate(f"file://{tmp_path}/x").local_path() == tmp_path / "x"


@pytest.mark.parametrize("gives_signs", [True, False])
def test_an_upload_ends_when_nothing_is_heard_of_it(tmp_path, monkeypatch, gives_signs):
    def put_file(self, source, target, callback):
        for _ in range(6):
            time.sleep(0.2)
            if gives_signs:
                callback.relative_update(1)
        self.pipe_file(target, b"abc")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.put_file", put_file)
    monkeypatch.setenv("TRAINKIT_STORAGE_TIMEOUT_S", "0.6")
    (tmp_path / "a").write_bytes(b"abc")
    there = locate(f"memory://signs/{gives_signs}")
    if gives_signs:
        there.upload(tmp_path / "a")
        assert there.read() == b"abc"
        return
    with pytest.raises(StorageError, match="cannot be reached \\(no answer in time\\)"):
        there.upload(tmp_path / "a")
