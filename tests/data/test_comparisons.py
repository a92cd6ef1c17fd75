"""A start on very many files looks at some, and a process compares all of them while the run trains."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import trainkit
from tests.counting import Counting
from tests.data import test_images as images
from tests.data.test_start import CHANGES, NAMES, fill, opened_below, rewritten, settle
from tests.data.test_text import make_documents, write_text
from tests.jobs import environment
from trainkit import manifest
from trainkit.cache import alone
from trainkit.data import comparison_process
from trainkit.data.comparisons import Comparisons
from trainkit.data.corpus import find_corpus, known_corpus
from trainkit.data.image_sources import Folder
from trainkit.data.listing import Listing
from trainkit.errors import DataError
from trainkit.testing import run_ranks

_KNOWN = "trainkit.data.known_files"


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if the folders of the test held very many files."""
    monkeypatch.setattr(f"{_KNOWN}.AT_START", 3)
    return monkeypatch


def looked(folder: Path, cache: Path) -> tuple[str, Comparisons]:
    """The fingerprint at a start, and the comparisons once they are done."""
    with Comparisons(is_first=True) as comparisons:
        with comparisons.later():
            fingerprint = known_corpus(folder, "text", cache).fingerprint(cache)
        comparisons.wait(lambda: False, progress=False)
    return fingerprint, comparisons


@contextmanager
def scans(patch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The folders that this process looks at as a whole."""
    from trainkit.data.folder_scan import scan

    calls: list[Path] = []

    def counted(root: Path, *settings: Any) -> Any:
        calls.append(root)
        return scan(root, *settings)

    with patch.context() as inner:
        inner.setattr(f"{_KNOWN}.scan", counted)
        yield calls


def test_a_start_on_very_many_files_does_not_look_at_all(tmp_path, many):
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    first, comparisons = looked(folder, cache)
    assert comparisons.facts() == {}, "the first look is a whole one"
    with scans(many) as calls, opened_below(folder) as opened:
        again, comparisons = looked(folder, cache)
    assert again == first and calls == [] and opened == []
    assert comparisons.facts() == {str(folder): "9 of 9"} and comparisons.error() is None


def test_who_does_not_train_looks_at_all(tmp_path, many):
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    looked(folder, cache)
    rewritten(folder / "b/0.txt")
    settle()
    many.setattr(f"{_KNOWN}.shows_change", lambda *_: False)
    with scans(many) as calls:
        found = known_corpus(folder, "text", cache).fingerprint(cache)
    assert calls and found == find_corpus(folder).fingerprint(tmp_path / "other")


FOUND = {
    "nothing": None,
    "touched": None,
    "not text": None,
    "rewritten": "1 file changed before this run began (a/b.txt changed)",
    "added": "1 file changed before this run began (b/00.txt added)",
    "removed": "1 file changed before this run began (a-b.txt removed)",
    "renamed": "2 files changed before this run began (y.md added, z.txt removed)",
    "replaced": "2 files changed before this run began (b/1.txt changed, z.txt removed)",
}


@pytest.mark.parametrize("change", FOUND)
def test_every_change_is_found_beside_the_training(tmp_path, many, change):
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    before, _ = looked(folder, cache)
    CHANGES[change][0](folder)
    settle()
    many.setattr(f"{_KNOWN}.shows_change", lambda *_: False)
    found, comparisons = looked(folder, cache)
    error = comparisons.error()
    assert found == before, "it trains on what was seen before"
    assert (error is None) == (FOUND[change] is None)
    assert error is None or str(FOUND[change]) in str(error)
    with opened_below(folder) as opened:
        after, comparisons = looked(folder, cache)
    assert opened == [], "the comparison has read what changed"
    assert after == find_corpus(folder).fingerprint(tmp_path / "other") and comparisons.error() is None


@pytest.mark.parametrize("change", [name for name in FOUND if name not in ("nothing", "not text")])
def test_most_changes_show_at_a_glance(tmp_path, many, change):
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    looked(folder, cache)
    CHANGES[change][0](folder)
    settle()
    found, comparisons = looked(folder, cache)
    assert found == find_corpus(folder).fingerprint(tmp_path / "other") and comparisons.facts() == {}


def test_directories_tell_of_names_but_not_of_content(tmp_path, many):
    many.setattr("trainkit.data.glance.MOST_FILES", 0)
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    before, _ = looked(folder, cache)
    rewritten(folder / "a/b.txt")
    found, comparisons = looked(folder, cache)
    assert found == before and "a/b.txt" in str(comparisons.error())
    (folder / "b" / "a file of no text").touch()
    settle()
    with scans(many) as calls:
        looked(folder, cache)
    assert calls, "it was looked at as a whole"
    with scans(many) as calls:
        looked(folder, cache)
    assert calls == [], "the new times of the directory are known"


def test_the_labels_of_pictures_are_always_looked_at(tmp_path, many):
    many.setattr("trainkit.data.glance.MOST_FILES", 0)
    many.setattr("trainkit.data.glance.MOST_FOLDERS", 0)
    folder = images.fill(tmp_path / "images", 6)
    (folder / "dataset.json").write_text("{}")
    settle()
    for content in (None, None, '{"labels": null}'):
        if content is not None:
            (folder / "dataset.json").write_text(content)
        with scans(many) as calls, Comparisons(is_first=False) as comparisons, comparisons.later():
            Folder(folder).look(tmp_path / "cache", "state", False)
    assert calls


def test_what_changes_after_the_start_is_told_apart(tmp_path):
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    listing: Listing = known_corpus(folder, "text", cache).listing  # type: ignore[assignment]
    rewritten(folder / "a/b.txt")
    (folder / "z.txt").unlink()
    settle()
    began_ns = time.time_ns()
    settle()
    write_text(folder / "b/0.txt", make_documents(3, seed=99))
    (folder / "a" / "c" / "d.md").unlink()
    settle()
    found = comparison_process._changes(folder, cache, listing.directory, "text", began_ns)
    assert found == {"num_changed": 2, "num_later": 2, "named": ["a/b.txt changed", "z.txt removed"]}


def _process(folder: Path, cache: Path, listing: Path) -> "subprocess.Popen[bytes]":
    given = (folder, cache, listing, "text", "parts", "another state", 0)
    command = [sys.executable, "-m", "trainkit.data.comparison_process", *map(str, given)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment())


def test_it_ends_with_the_run_that_began_it(tmp_path):
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    listing = known_corpus(folder, "text", cache).listing
    assert listing is not None
    note = next(cache.glob("folder-*.json"))
    with alone(cache / f".{note.stem}.lock", "what the process waits for"):
        process = _process(folder, cache, listing.directory)
        try:
            assert process.stdout is not None and b'"num": 9' in process.stdout.readline()
            process.stdout.close()
            assert process.wait(60) == 1
        finally:
            process.kill()
            process.wait(30)


def test_one_that_fails_is_reported(tmp_path, many, capsys):
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    looked(folder, cache)
    many.setattr("trainkit.data.comparisons._PROCESS", "trainkit.no_such_module")
    _, comparisons = looked(folder, cache)
    assert comparisons.error() is None and comparisons.facts() == {str(folder): "0 of 9"}
    said = capsys.readouterr().err
    assert "could not be compared with what they were" in said and "no_such_module" in said


def test_one_that_is_not_done_is_said(tmp_path, many, capsys):
    folder, cache = fill(tmp_path / "text"), tmp_path / "cache"
    looked(folder, cache)
    with Comparisons(is_first=True) as comparisons:
        with comparisons.later():
            known_corpus(folder, "text", cache)
        comparisons.wait(lambda: True, progress=False)
    assert "the run ends, and 0 of 9 files were compared" in capsys.readouterr().err


# -- runs ------------------------------------------------------------------------------------------------------------


def _fitted(folder: Path, root: Path, num_steps: int) -> tuple[str, int, list[str]]:
    """What ended a run, its steps, and the checkpoints."""
    patch, runtime = pytest.MonkeyPatch(), trainkit.Runtime(device="cpu", run_dir=root / "run")
    patch.setattr(f"{_KNOWN}.AT_START", 3)
    patch.setattr(f"{_KNOWN}.shows_change", lambda *_: False)
    try:
        with Comparisons() as comparisons:
            with comparisons.later():
                runtime.ranks.first_on_host(lambda: known_corpus(folder, "text", root / "cache"))
            trainer = trainkit.Trainer(Counting(runtime, range(9), num_steps))
            trainer.comparisons = comparisons
            said = "finished"
            try:
                trainer.fit()
            except DataError as error:
                said = str(error)
    finally:
        patch.undo()
        runtime.close()
    return said, trainer.step, sorted(path.name for path in (root / "run" / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_change_ends_the_run_on_all_ranks_and_saves(tmp_path, world_size):
    folder = fill(tmp_path / "text")
    known_corpus(folder, "text", tmp_path / "cache")
    rewritten(folder / "b/1.txt")
    settle()
    found = run_ranks(_fitted, world_size, folder, tmp_path, 10_000_000)
    assert len(set(map(repr, found))) == 1
    said, step, checkpoints = found[0]
    assert "1 file changed before this run began (b/1.txt changed)" in said
    assert f"step {step} is saved in {tmp_path}/run: start again with data_changed=accept" in said
    assert checkpoints == [f"step_{step:08}"]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("is_changed", [False, True])
def test_a_short_run_waits_for_it_at_its_end(tmp_path, world_size, is_changed):
    folder = fill(tmp_path / "text")
    known_corpus(folder, "text", tmp_path / "cache")
    if is_changed:
        rewritten(folder / "b/1.txt")
        settle()
    found = run_ranks(_fitted, world_size, folder, tmp_path, 2)
    assert all(("b/1.txt changed" in said) == is_changed for said, *_ in found)
    assert [checkpoints for *_, checkpoints in found] == [["step_00000002"]] * world_size
    assert manifest.read(tmp_path / "run")["data"]["files_compared"] == {str(folder): f"{len(NAMES) + 1} of 9"}


# -- counts ----------------------------------------------------------------------------------------------------------


def _questions(num: int, root: Path, many: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a start on files that were seen before asks for anything, and the bytes that it takes."""
    import tracemalloc

    folder, cache = root / f"{num}", root / f"cache {num}"
    for number in range(num):
        path = folder / f"{number // 50}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}\n")
    settle()
    looked(folder, cache)
    counts = {"stat": 0, "scandir": 0, "bytes": 0}
    stat, scandir = os.stat, os.scandir

    def counted_stat(*given: Any, **named: Any) -> os.stat_result:
        counts["stat"] += str(given[0]).startswith(str(folder)) or "dir_fd" in named
        return stat(*given, **named)

    def counted_scandir(*given: Any) -> Any:
        counts["scandir"] += 1
        return scandir(*given)

    with Comparisons(is_first=False) as comparisons, comparisons.later(), many.context() as inner:
        inner.setattr(os, "stat", counted_stat)
        inner.setattr(os, "scandir", counted_scandir)
        tracemalloc.start()
        with opened_below(folder) as opened:
            known_corpus(folder, "text", cache).fingerprint(cache)
        counts["bytes"] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert opened == []
    return counts


def test_a_start_on_a_million_files_asks_for_no_more(tmp_path, many):
    many.setattr("trainkit.data.known_files.AT_START", 300)
    many.setattr("trainkit.data.glance.MOST_FILES", 64)
    many.setattr("trainkit.data.glance.MOST_FOLDERS", 5)
    many.setattr("trainkit.data.glance.WITHIN_S", 60.0)
    fewer, more = _questions(500, tmp_path, many), _questions(2000, tmp_path, many)
    assert 64 <= more["stat"] <= fewer["stat"] + 4 and more["scandir"] == fewer["scandir"] <= 1
    bytes_a_file = (more["bytes"] - fewer["bytes"]) / 1500
    assert fewer["bytes"] + bytes_a_file * 1e6 < 2e7, "of a rank, by a straight line through both"


def test_below_that_a_start_asks_each_file_once(tmp_path, many):
    many.setattr("trainkit.data.known_files.AT_START", 10_000)
    fewer, more = _questions(100, tmp_path, many), _questions(300, tmp_path, many)
    assert 200 <= more["stat"] - fewer["stat"] <= 200 + 2 * 4, "and the directories, of which there are four more"


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_compares_by_itself(tmp_path, many):
    from trainkit.config import compose
    from trainkit.job import train

    folder = fill(tmp_path / "text")
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "feed_forward_size": 16, "max_length": 16}
    given = ["recipe=bert", "strategy=single", "device=cpu", "tracking=none", f"data.path={folder}"]
    given += [*(f"recipe.model.{key}={value}" for key, value in shape.items()), "recipe.batch_size=4"]
    given += [
        "data.sequence_length=16",
        "data.vocab_size=200",
        "data.held_out=0.1",
        "recipe.num_steps=2",
        "schedule=constant",
    ]
    given += [f"data.cache_dir={tmp_path / 'cache'}"]
    whole = train(compose([*given, f"run_dir={tmp_path / 'first'}"]))
    with opened_below(folder) as opened, scans(many) as calls:
        assert train(compose([*given, f"run_dir={tmp_path / 'again'}"])) == whole
    assert calls == [] and set(opened) <= {*NAMES, "photo.png"}, "which the manifest lists"
    assert manifest.read(tmp_path / "again")["data"]["files_compared"] == {str(folder): "9 of 9"}
    assert "files_compared" not in manifest.read(tmp_path / "first")["data"]
    many.setattr(f"{_KNOWN}.shows_change", lambda *_: False)
    rewritten(folder / "a/b.txt")
    settle()
    with pytest.raises(DataError, match=r"1 file changed before this run began \(a/b.txt changed\).*step 2 is saved"):
        train(compose([*given, f"run_dir={tmp_path / 'third'}"]))
