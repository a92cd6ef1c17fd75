"""The start on files that were seen before: nothing is read that has not changed, and every change is noticed."""

import hashlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data import test_images as images
from tests.data.test_text import make_documents, small, write_text
from trainkit import Runtime
from trainkit.data import Text, folder_scan
from trainkit.data.corpus import find_corpus, known_corpus
from trainkit.data.image_sources import Folder
from trainkit.data.listing import Names
from trainkit.data.text_files import TextFiles
from trainkit.testing import run_ranks

NAMES = ("a.txt", "a/b.txt", "a/c/d.md", "a-b.txt", "b.txt.gz.d/é.txt", "b/0.txt", "b/1.txt", "z.txt")
_opened: list[str] = []
_folders: list[str] = []  # of which files are noted


def _note(event: str, given: tuple[Any, ...]) -> None:
    if event == "open" and _folders and isinstance(given[0], str) and given[0].startswith(_folders[0] + os.sep):
        _opened.append(given[0])


sys.addaudithook(_note)


@contextmanager
def opened_below(folder: Path) -> Iterator[list[str]]:
    """The files that are opened, without directories."""
    noted: list[str] = []
    _opened.clear()
    _folders.append(str(folder))
    try:
        yield noted
    finally:
        _folders.clear()
        noted += sorted(os.path.relpath(path, folder) for path in _opened if not Path(path).is_dir())


def fill(folder: Path) -> Path:
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, make_documents(30, seed=number))
    (folder / "photo.png").write_bytes(b"no text")
    settle()
    return folder


def settle() -> None:
    """Files that were written in the moment of a start are read again at the next one."""
    time.sleep(0.15)


def rewritten(path: Path) -> None:
    """The same size and time of change as before: only the time of the change of status is another."""
    times, content = path.stat(), path.read_bytes()
    path.write_bytes(content.swapcase())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == len(content)


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "nothing": (lambda folder: None, []),
    "touched": (lambda folder: (folder / "b/0.txt").touch(), ["b/0.txt"]),
    "rewritten": (lambda folder: rewritten(folder / "a/b.txt"), ["a/b.txt"]),
    "added": (lambda folder: write_text(folder / "b/00.txt", ["one", "two"]), ["b/00.txt"]),
    "removed": (lambda folder: (folder / "a-b.txt").unlink(), []),
    "renamed": (lambda folder: (folder / "z.txt").rename(folder / "y.md"), ["y.md"]),
    "replaced": (lambda folder: (folder / "z.txt").replace(folder / "b/1.txt"), ["b/1.txt"]),
    "not text": (lambda folder: (folder / "photo.png").write_bytes(b"other"), []),
}


def test_a_first_start_reads_each_file_for_its_digest_once(tmp_path):
    folder = fill(tmp_path / "text")
    with opened_below(folder) as opened:
        known_corpus(folder, "text", tmp_path / "cache").fingerprint(tmp_path / "cache")
    assert opened == sorted(NAMES)


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_has_changed_is_read_again(tmp_path, change):
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    before = known_corpus(folder, "text", cache).fingerprint(cache)
    make, read = CHANGES[change]
    make(folder)
    settle()
    with opened_below(folder) as opened:
        after = known_corpus(folder, "text", cache).fingerprint(cache)
    assert opened == read
    assert after == find_corpus(folder).fingerprint(tmp_path / "other"), "as on a machine that has seen nothing"
    assert (after == before) == (change in ("nothing", "touched", "not text"))
    with opened_below(folder) as opened:
        assert known_corpus(folder, "text", cache).fingerprint(cache) == after
    assert opened == []


def test_a_second_start_opens_no_file(tmp_path):
    folder = fill(tmp_path / "text")
    before = small(folder, tmp_path).load(progress=False).fingerprints()
    with opened_below(folder) as opened:
        again = small(folder, tmp_path).load(progress=False)
    assert opened == [] and again.fingerprints() == before
    assert again.facts["files not read"] == "1 .png"


def test_a_known_audit_opens_no_file(tmp_path):
    folder = fill(tmp_path / "text")
    before = small(folder, tmp_path).sides(progress=False)
    assert before is not None
    with opened_below(folder) as opened:
        again = small(folder, tmp_path).sides(progress=False)
    assert again is not None and opened == []
    for sides in (before, again):
        assert sides.fingerprint == before.fingerprint
        assert sides.num_train == sum(1 for _ in sides.train()) and sides.num_held_out == sum(
            1 for _ in sides.held_out()
        )


def test_a_file_that_was_just_written_is_read_again(tmp_path, monkeypatch):
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    written = (folder / "z.txt").stat().st_ctime_ns
    monkeypatch.setattr("trainkit.data.file_look.time.time_ns", lambda: written)
    known_corpus(folder, "text", cache)
    monkeypatch.undo()
    for read in (list(NAMES), []):
        with opened_below(folder) as opened:
            known_corpus(folder, "text", cache)
        assert set(opened) <= set(read) and ("z.txt" in opened) == bool(read)


def _oracle(folder: Path) -> str:
    """The fingerprint as it was before files were remembered."""
    whole = hashlib.blake2b(b"text 0", digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md")):
        whole.update(path.suffix.encode() + hashlib.blake2b(path.read_bytes()).digest())
    return whole.hexdigest()


@pytest.mark.parametrize("at_once", [1, 3, 512])
def test_files_are_those_of_a_sorted_list(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(folder_scan, "AT_ONCE", at_once)
    monkeypatch.setattr("trainkit.data.listing._ROWS_AT_ONCE", at_once)
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    known = known_corpus(folder, "text", cache)
    expected = sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md"))
    assert list(known.train) == expected == [known.train[number] for number in range(len(known.train))]
    assert known.train[-2:] == expected[-2:] and list(known.unread) == [folder / "photo.png"]
    assert known.fingerprint(cache) == _oracle(folder)
    assert known.num_bytes == sum(path.stat().st_size for path in expected)
    assert list(known.named()) == list(find_corpus(folder).named())


@pytest.mark.parametrize("at_once", [1, 512])
def test_names_of_images_are_sorted_as_texts(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(folder_scan, "AT_ONCE", at_once)
    for name in ("a/1.png", "a/1/0.png", "a.png", "a-b.png", "a/é.png", "b.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        images.noise(len(name)).save(tmp_path / "images" / name)
    folder = Folder(tmp_path / "images")
    before = [*folder.names()]
    assert before == sorted(before) and len(before) == 6
    unseen = folder.fingerprint(tmp_path)
    folder.look(tmp_path / "cache", "state", False)
    names = folder.names()
    assert isinstance(names, Names) and [*names] == before == names[0:6] == [names[number] for number in range(6)]
    assert folder.fingerprint(tmp_path) == unseen


def test_folders_in_a_circle_and_links_to_nothing_are_as_before(tmp_path):
    folder = fill(tmp_path / "text")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.txt")
    known = known_corpus(folder, "text", tmp_path / "cache")
    assert {path.name for path in known.unread} == {"photo.png", "gone.txt", "pipe.txt"}
    assert list(known.train) == list(find_corpus(folder).train) and len(known.train) == len(NAMES)


@pytest.mark.parametrize("verify", ["state", "full"])
def test_full_names_what_changed_without_a_trace(tmp_path, monkeypatch, capsys, verify):
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    before = known_corpus(folder, "text", cache).fingerprint(cache)
    content = TextFiles.content

    def flipped(self, path):  # as a disk that returns other bytes
        return content(self, path)[::-1] if path.name == "0.txt" else content(self, path)

    monkeypatch.setattr(TextFiles, "content", flipped)
    after = known_corpus(folder, "text", cache, verify=verify).fingerprint(cache)
    assert (after != before) == (verify == "full")
    assert ("1 file changed without a change of size or time: b/0.txt" in capsys.readouterr().err) == (verify == "full")


def test_full_reads_a_single_file_again(tmp_path, monkeypatch, capsys):
    path = write_text(tmp_path / "a.txt", make_documents(100))
    before = small(path, tmp_path).load(progress=False).fingerprints()
    monkeypatch.setattr("trainkit.data.corpus.content_of", lambda path: b"other bytes")
    assert small(path, tmp_path).load(progress=False).fingerprints() == before
    assert small(path, tmp_path, verify="full").load(progress=False).fingerprints() != before
    assert f"{path} changed without a change of size or time" in capsys.readouterr().err


def test_a_second_start_opens_no_picture(tmp_path):
    folder = images.fill(tmp_path / "images", 24)
    settle()
    before = images.small(folder, tmp_path).load(progress=False)
    with opened_below(folder) as opened:
        again = images.small(folder, tmp_path).load(progress=False)
    assert opened == [] and again.fingerprints() == before.fingerprints()
    rows = [data._rows.values for data in (again.train, again.held_out)]
    assert all(isinstance(values, np.memmap) for values in rows) and sum(map(len, rows)) == 24


def _looked(folder: Path, root: Path, shared: bool) -> tuple[int, list[str]]:
    """How often this rank lists the folder, and the files that it opens."""
    calls: list[Path] = []

    def counted(root: Path, *settings: Any) -> Iterator[folder_scan.Run]:
        calls.append(root)
        return folder_scan.scan(root, *settings)

    patch = pytest.MonkeyPatch()
    patch.setattr("trainkit.data.known_files.scan", counted)
    runtime = Runtime(run_dir=None)
    try:
        with opened_below(folder) as opened:
            specification = Text(
                path=folder, vocab_size=200, sequence_length=16, held_out=0.1, cache_dir=root / "cache"
            )
            load = runtime.ranks.first_on_host if shared else lambda function: function()
            load(lambda: specification.load(progress=False))
    finally:
        patch.undo()
        runtime.close()
    return len(calls), opened


@pytest.mark.parametrize("world_size", [2, 4])
def test_one_rank_of_a_machine_looks(tmp_path, world_size):
    folder = fill(tmp_path / "text")
    for times_read in (4, 0):  # for its digest, the split, the vocabulary and the tokens
        found = run_ranks(_looked, world_size, folder, tmp_path, True)
        assert [num for num, _ in found] == [1] + [0] * (world_size - 1)
        assert sorted(name for _, opened in found for name in opened) == sorted(NAMES * times_read)


def test_of_ranks_that_ask_at_once_one_reads(tmp_path):
    folder = fill(tmp_path / "text")
    found = run_ranks(_looked, 4, folder, tmp_path, False)
    assert sorted(name for _, opened in found for name in opened) == sorted(NAMES * 4)


def _stops_in_the_middle(folder: Path, cache: Path) -> None:
    def stop(self: TextFiles, path: Path) -> bytes:
        (cache / "begun").touch()
        time.sleep(60)
        return b""

    TextFiles.content = stop  # type: ignore[method-assign]
    known_corpus(folder, "text", cache)


def test_who_waits_takes_over_from_one_that_is_killed(tmp_path):
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    first = multiprocessing.get_context("fork").Process(target=_stops_in_the_middle, args=(folder, cache))
    first.start()
    try:
        deadline = time.monotonic() + 30
        while not (cache / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.kill()
        corpus = known_corpus(folder, "text", cache)
        assert corpus.fingerprint(cache) == _oracle(folder)
    finally:
        first.kill()
        first.join(30)


def test_one_that_gives_no_sign_is_not_waited_for(tmp_path, monkeypatch, capsys):
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    first = multiprocessing.get_context("fork").Process(target=_stops_in_the_middle, args=(folder, cache))
    first.start()
    try:
        deadline = time.monotonic() + 30
        while not (cache / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        monkeypatch.setattr("trainkit.cache.ABANDONED_AFTER_S", 0.3)
        assert known_corpus(folder, "text", cache).fingerprint(cache) == _oracle(folder)
        assert "gave no sign for 0 s, and is not waited for" in capsys.readouterr().err
    finally:
        first.kill()
        first.join(30)
