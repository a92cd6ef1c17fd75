"""The global batch is the same on any ranks and workers and after a resume, whatever format the shards are of."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trainkit
from tests.data.formats.test_tars import write_shards
from tests.data.formats.test_written_by_peers import WRITTEN
from trainkit.data import open_dataset
from trainkit.data.loader import Fetcher
from trainkit.data.order import Order
from trainkit.testing import run_ranks

BATCH, STEPS, SEED = 16, 201, 11
CASES = ("mds", "mds_zstd", "litdata", "litdata_rows", "litdata_zstd_batch", "litdata_tokens", "tars", "arrow")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    datasets = pytest.importorskip("datasets", reason="the datasets library writes what is read")
    found = {name: WRITTEN / name for name in CASES}
    found["tars"], found["arrow"] = (tmp_path_factory.mktemp(name) / name for name in ("tars", "arrow"))
    write_shards(found["tars"])
    rows = {"text": [f"row {number}" for number in range(40)], "label": [*range(40)]}
    datasets.Dataset.from_dict(rows).save_to_disk(found["arrow"], num_shards=3)
    return found


def digests(samples: list[Any]) -> torch.Tensor:
    """[N, 2]: of the content of each sample."""
    found = [hashlib.blake2b(repr(_plain(sample)).encode(), digest_size=16).digest() for sample in samples]
    return torch.from_numpy(np.frombuffer(b"".join(found), np.int64).reshape(-1, 2).copy())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "tobytes"):  # arrays and pictures
        return value.tobytes()
    return value.tolist() if isinstance(value, torch.Tensor) else value


def opened(name: str, folder: Path) -> Any:
    return open_dataset(folder, block_size=4 if name == "litdata_tokens" else None)


def _shares(
    folders: dict[str, Path], num_workers: int, first: int
) -> dict[str, list[tuple[list[int], list[list[int]]]]]:
    """(positions, digests) of each share of this rank, by format."""
    runtime, found = trainkit.Runtime(seed=SEED, device="cpu", tracker=trainkit.Tracker()), {}
    for name, folder in folders.items():
        batches = runtime.batches(
            opened(name, folder),
            batch_size=BATCH,
            start=first * BATCH,
            num_steps=STEPS - first,
            num_workers=num_workers,
            collate=digests,
        )
        found[name] = [(batch.positions.tolist(), batch.data.tolist()) for batch in batches]
    return found


def hashes(folders: dict[str, Path], world_size: int, num_workers: int = 0, first: int = 0) -> dict[str, list[str]]:
    ranks = run_ranks(_shares, world_size, folders, num_workers, first)
    return {name: _joined([rank[name] for rank in ranks], first) for name in folders}


def _joined(ranks: list[list[tuple[list[int], list[list[int]]]]], first: int) -> list[str]:
    found = []
    for number, step in enumerate(zip(*ranks, strict=True), start=first):
        rows = {place: row for places, values in step for place, row in zip(places, values, strict=True)}
        assert sorted(rows) == [*range(number * BATCH, (number + 1) * BATCH)]
        found.append(hashlib.sha256(repr([rows[place] for place in sorted(rows)]).encode()).hexdigest())
    return found


@pytest.fixture(scope="module")
def reference(folders) -> dict[str, list[str]]:
    found = hashes(folders, 1)
    assert all(len(set(each)) > STEPS * 0.9 for each in found.values())  # of a small set some batch may come twice
    return found


# Five processes for each format take long to start: two formats stand for the others, which the nightly case has.
@pytest.mark.parametrize(
    ("world_size", "num_workers", "names"),
    [
        (2, 0, CASES),
        (4, 0, CASES),
        (1, 5, ("mds_zstd", "tars")),
        (2, 2, ("litdata_rows", "arrow")),
        pytest.param(2, 5, CASES, marks=pytest.mark.nightly),
    ],
)
def test_equal_on_any_ranks_and_workers(folders, reference, world_size, num_workers, names):
    found = hashes({name: folders[name] for name in names}, world_size, num_workers)
    assert found == {name: reference[name] for name in names}


@pytest.mark.parametrize(("world_size", "num_workers", "names"), [(4, 0, CASES), (2, 2, ("mds", "tars"))])
def test_equal_after_a_resume_on_other_ranks(folders, reference, world_size, num_workers, names):
    found = hashes({name: folders[name] for name in names}, world_size, num_workers, first=17)
    assert found == {name: reference[name][17:] for name in names}


@pytest.mark.parametrize("name", CASES)
def test_equal_on_eight_ranks(folders, reference, name):
    """By the fetchers of eight ranks in one process, each a copy as a loader worker has one."""
    ranks = []
    for rank in range(8):
        source = opened(name, folders[name])
        order = Order(len(source), SEED)
        fetcher = Fetcher(source, order, batch_size=BATCH, rank=rank, world_size=8, collate=digests)
        copy = pickle.loads(pickle.dumps(fetcher))
        batches = [copy[number * BATCH] for number in range(STEPS)]
        ranks.append([(batch.positions.tolist(), batch.data.tolist()) for batch in batches])
    assert _joined(ranks, 0) == reference[name]
