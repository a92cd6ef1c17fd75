import pytest

from trainkit.errors import StorageError
from trainkit.storage import LocalLocation, is_url, locate


def test_ranges_are_those_of_the_file(tmp_path):
    file = locate(tmp_path).child("a/b.bin")
    file.write(bytes(range(10)))
    assert file.read(2, 5) == bytes([2, 3, 4])
    assert file.read_ranges([(0, 1), (9, 10), (3, 3)]) == [b"\0", b"\x09", b""]
    assert (file.size(), file.is_file(), locate(tmp_path).names()) == (10, True, ["a/b.bin"])


def test_a_file_that_is_cut_short_is_named(tmp_path):
    file = LocalLocation(tmp_path / "short.bin")
    file.write(b"abc")
    with pytest.raises(StorageError, match=r"short\.bin ends at byte 3, before 5"):
        file.read(1, 5)
    with pytest.raises(StorageError, match=r"gone\.bin cannot be read: No such file"):
        locate(tmp_path / "gone.bin").read()


def test_a_write_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="taken cannot be written"):
        locate(tmp_path / "taken").write(b"abc")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("path", "expected"), [("s3://b/x", True), ("https://h/x", True), ("/a", False), ("c:/a", False)]
)
def test_urls_are_told_from_paths(path, expected):
    assert is_url(path) is expected


def test_the_version_of_a_file_changes_with_it(tmp_path):
    file = locate(tmp_path).child("a")
    file.write(b"abc")
    before = file.version()
    assert before == locate(tmp_path).files()["a"].version()
    file.write(b"abd")
    assert file.version() != before


def test_a_file_is_copied_and_removed(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    there = locate(tmp_path / "to").child("b/c")
    there.upload(tmp_path / "a")
    assert (there.read(), there.is_file()) == (b"abc", True)
    there.remove()
    there.remove()
    assert not there.is_file()
