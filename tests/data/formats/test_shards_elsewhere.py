"""Shards that do not lie on this machine are read by ranges, and say ahead which."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.formats import samples
from tests.data.formats.test_tars import write_shards
from tests.data.formats.test_written_by_peers import CASES, WRITTEN, same
from trainkit.data import ShardedDataset, open_dataset
from trainkit.storage import LocalLocation, Location


class Elsewhere(Location):
    """A folder that can only be read by ranges; it notes what was read and what was said to come."""

    read_from: list[tuple[str, int, int]] = []  # noqa: RUF012  # of all files together
    said: list[tuple[str, int, int]] = []  # noqa: RUF012

    def __init__(self, inner: LocalLocation) -> None:
        self.inner = inner

    @property
    def shown(self) -> str:
        return f"far://{self.inner.path.name}"

    def child(self, name: str) -> "Elsewhere":
        return Elsewhere(self.inner.child(name))

    def is_file(self) -> bool:
        return self.inner.is_file()

    def is_folder(self) -> bool:
        return self.inner.is_folder()

    def names(self) -> list[str]:
        return self.inner.names()

    def version(self) -> str:
        return ""

    def size(self) -> int:
        return self.inner.size()

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        content = self.inner.read(start, stop)
        self.read_from.append((self.inner.path.name, start, start + len(content)))
        return content

    def prefetch(self, ranges: Any, check: Any = None) -> int:
        self.said.extend((self.inner.path.name, *each) for each in ranges)
        return 0

    def write(self, content: bytes) -> None:
        raise NotImplementedError

    def upload(self, path: Path) -> None:
        raise NotImplementedError

    def download(self, path: Path) -> None:
        raise NotImplementedError

    def remove(self) -> None:
        raise NotImplementedError

    def local_path(self) -> None:
        return None


@pytest.fixture(autouse=True)
def _far(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "trainkit.data.formats.opening.locate",
        lambda path: Elsewhere(LocalLocation(Path(str(path).removeprefix("far:/")))),
    )
    monkeypatch.setattr("trainkit.data.formats.opening.is_url", lambda path: True)
    Elsewhere.read_from.clear()
    Elsewhere.said.clear()


def far(path: Path, **settings: Any) -> ShardedDataset:
    return open_dataset(f"far:/{path}", **settings)


@pytest.mark.parametrize("name", CASES)
def test_samples_are_those_of_local_shards(name):
    dataset = far(WRITTEN / name)
    expected = [CASES[name](number) for number in range(samples.NUM)]
    order = [*range(samples.NUM), 3, -1]
    assert all(same(found, expected[index]) for index, found in zip(order, dataset.__getitems__(order), strict=True))
    copy = pickle.loads(pickle.dumps(dataset))
    assert same(copy[5], expected[5]) and copy.fingerprint == dataset.fingerprint and dataset.paths() == []


def test_tars_and_streams_of_tokens_are_read_too(tmp_path):
    expected = write_shards(tmp_path / "tars")
    dataset = far(tmp_path / "tars")
    assert [sample["png"] for sample in dataset] == [sample["png"] for sample in expected]
    assert far(tmp_path / "tars" / "a-001.tar")[3]["__key__"] == "in/00013"
    tokens = far(WRITTEN / "litdata_tokens", block_size=samples.BLOCK)
    assert [*tokens[0]] == [*range(5), *range(10, 13)]


@pytest.mark.parametrize("name", ["mds", "litdata"])
def test_what_is_said_to_come_is_what_is_read(name):
    dataset = far(WRITTEN / name)
    indices = np.array([0, 7, 2])
    dataset.prefetch(indices)
    said = set(Elsewhere.said)
    assert said and {name for name, *_ in Elsewhere.read_from} == {"index.json"}  # it returns at once
    dataset.__getitems__(indices.tolist())
    assert said <= set(Elsewhere.read_from)  # where the samples are
    Elsewhere.said.clear()
    Elsewhere.read_from.clear()
    dataset.prefetch(indices)
    dataset.__getitems__(indices.tolist())
    assert Elsewhere.said and sorted(Elsewhere.said) == sorted(Elsewhere.read_from)
    sizes = {path.name: path.stat().st_size for path in (WRITTEN / name).iterdir()}
    assert sum(stop - start for _, start, stop in Elsewhere.said) < sum(sizes.values()) / 2


def test_files_of_a_sample_are_said_to_come(tmp_path):
    write_shards(tmp_path / "tars")
    dataset = far(tmp_path / "tars", columns=["cls"])
    dataset[0], dataset[12]  # the headers of the tars were compared
    Elsewhere.read_from.clear()
    dataset.prefetch(np.array([12, 3]))
    dataset.__getitems__([12, 3])
    assert len(Elsewhere.said) == 2 and sorted(Elsewhere.said) == sorted(Elsewhere.read_from)
