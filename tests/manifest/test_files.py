"""The files that data consist of: found by the configuration, hashed, listed."""

import hashlib

import pytest

from trainkit.manifest import data_files, files
from trainkit.manifest.files import read_files, write_files


def test_files_of_a_folder_and_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "texts" / "in").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("a")
    (tmp_path / "texts" / "in" / "b.txt").write_text("bb")
    (tmp_path / "texts" / ".hidden").write_text("c")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "c.txt").write_text("c")
    (tmp_path / "text").mkdir()
    monkeypatch.chdir(tmp_path)
    data = {"_target_": "trainkit.data.Text", "path": "texts", "field": "text", "cache_dir": str(tmp_path / "cache")}
    found = data_files({"data": data, "weights": None})
    assert found["num_files"] == 2 and found["num_bytes"] == 3 and found["hashed"] == "whole"
    assert found["files"] == {
        "texts/a.txt": {"num_bytes": 1, "sha256": hashlib.sha256(b"a").hexdigest()},
        "texts/in/b.txt": {"num_bytes": 2, "sha256": hashlib.sha256(b"bb").hexdigest()},
    }
    assert data_files({"data": {"path": None}})["files"] == {}


def test_of_large_files_both_ends_are_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_WHOLE_BYTES", 100)
    monkeypatch.setattr(files, "_ENDS", 4)
    path = tmp_path / "a.bin"
    sums = set()
    for content in (b"a" * 101, b"b" + b"a" * 100, b"a" * 100 + b"b", b"a" * 50 + b"b" + b"a" * 50):
        path.write_bytes(content)
        found = data_files({"path": str(path)})
        assert found["hashed"] == "ends"
        sums.add(found["files"][str(path)]["sha256"])
    assert len(sums) == 3, "the middle of a file is not read"
    assert data_files({"path": str(path)}, whole=True)["hashed"] == "whole"


def test_of_very_many_files_no_more_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILES", 2)
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("a")
    assert data_files({"path": str(tmp_path)}) == {"more_than": 2}
    monkeypatch.setattr(files, "MAX_FILES", 3)
    assert data_files({"path": str(tmp_path)})["num_files"] == 3


def test_a_list_is_read_as_it_was_written(tmp_path):
    found: dict[str, dict[str, object]] = {
        "a\nb.txt": {"num_bytes": 1, "sha256": "x"},
        "ü.txt": {"num_bytes": 2, "sha256": None},
    }
    digest = write_files(tmp_path / "list", found)
    assert digest == hashlib.sha256((tmp_path / "list").read_bytes()).hexdigest()
    assert read_files(tmp_path / "list") == found
    assert read_files(tmp_path / "none") == {}
    (tmp_path / "list").write_text("{")
    with pytest.raises(ValueError):
        read_files(tmp_path / "list")
