"""The cache: a directory that is there whole or not at all, whoever builds it and however that ends."""

import errno
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from trainkit import cache
from trainkit.cache import CacheError, cached
from trainkit.errors import DataError


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def build(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cached(tmp_path, "name", build)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_a_cache_has_the_permissions_that_the_umask_gives(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        directory = cached(tmp_path / "cache", "name", lambda aside: (aside / "file").write_text("x"))
    finally:
        os.umask(before)
    assert (directory / "file").stat().st_mode & 0o777 == mode
    assert directory.stat().st_mode & 0o777 == 0o777 & ~umask


def _build_for_ever(root: Path, name: str) -> None:
    def build(aside: Path) -> None:
        (aside / "half").write_text("half")
        (root / "begun").touch()
        time.sleep(60)

    cached(root, name, build)


def test_only_what_a_killed_process_left_half_built_is_removed(tmp_path, monkeypatch):
    root, names = tmp_path / "cache", ["text-" + "0" * 31 + digit for digit in "123"]
    root.mkdir()
    bystander = root / ".some-directory-of-the-user"
    bystander.mkdir()
    monkeypatch.setattr(cache, "ABANDONED_AFTER_S", -1.0)
    context = multiprocessing.get_context("fork")
    builders = [context.Process(target=_build_for_ever, args=(root, name)) for name in names[:2]]
    try:
        for builder in builders:
            builder.start()
            deadline = time.monotonic() + 30
            while not (root / "begun").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            (root / "begun").unlink()
        builders[0].kill()
        builders[0].join(30)
        cached(root, names[2], lambda aside: None)
        locks = {path.name for path in root.glob(".*.lock")}
        assert locks == {f".{names[1]}.lock"}, "of the builder that runs"
        left = {path.name[:-9] for path in root.iterdir() if path.name not in locks} - {bystander.name[:-9]}
        assert left == {f".{names[1]}", names[2][:-9]}
        assert bystander.is_dir()
    finally:
        for builder in builders:
            builder.kill()
            builder.join(30)


def test_a_disk_that_numpy_finds_full_is_one_line(tmp_path):
    with pytest.raises(CacheError, match=r"cannot be written \(no space left\); free some space there"):
        cached(tmp_path, "name", lambda directory: np.zeros(100_000).tofile("/dev/full"))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(tmp_path):
    def build(directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); free some space") as caught:
        cached(tmp_path, "name", build)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_of_two_builders_one_is_kept_and_both_find_it(tmp_path):
    def build(directory: Path, text: str = "late") -> None:
        (directory / "file").write_text(text)
        if text == "late":  # meanwhile, another process builds the same and is done first
            cached(tmp_path, "name", lambda other: build(other, "early"))

    assert (cached(tmp_path, "name", build) / "file").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def _build_slowly(root: Path, number: int) -> None:
    def build(aside: Path) -> None:
        (aside / "file").write_text(str(number))
        (root / f"begun-{number}").touch()
        time.sleep(0.5)

    cached(root, "name", build)


def test_of_processes_that_ask_at_once_one_builds(tmp_path):
    context = multiprocessing.get_context("fork")
    builders = [context.Process(target=_build_slowly, args=(tmp_path, number)) for number in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(30)
        assert builder.exitcode == 0
    (begun,) = tmp_path.glob("begun-*")
    assert (tmp_path / "name" / "file").read_text() == begun.name.removeprefix("begun-")
    assert {path.name for path in tmp_path.iterdir()} == {"name", begun.name}


@pytest.mark.parametrize("is_killed", [True, False])
def test_who_waits_builds_where_the_builder_is_gone(tmp_path, monkeypatch, is_killed):
    builder = multiprocessing.get_context("fork").Process(target=_build_for_ever, args=(tmp_path, "name"))
    builder.start()
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if is_killed:
            builder.kill()
        else:
            monkeypatch.setattr(cache, "ABANDONED_AFTER_S", 0.3)
        assert (cached(tmp_path, "name", lambda aside: (aside / "mine").touch()) / "mine").exists()
    finally:
        builder.kill()
        builder.join(30)
