"""Shards of other tools behind URLs, as text and images of recipes: the same as on a path."""

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.formats import samples
from tests.data.formats.test_tars import write_shards
from tests.data.formats.test_written_by_peers import WRITTEN
from tests.data.shards.stores import bucket, own_settings
from tests.storage.servers import NO_MOTO, NO_NGINX, moto, nginx, serving
from trainkit.data import Images, Text, open_dataset
from trainkit.data.corpus import find_corpus
from trainkit.data.image_sources import find_source
from trainkit.data.remote_corpus import find_remote_corpus
from trainkit.data.remote_images import find_remote_source
from trainkit.errors import DataError
from trainkit.storage import locate
from trainkit.testing import run_ranks

needs_nginx = pytest.mark.skipif(nginx() is None, reason=NO_NGINX)
TEXTS = [samples.text(number) for number in range(samples.NUM)]
TEXT_SETS = [
    "mds",
    "mds_zstd",
    "litdata",
    "litdata_zstd_batch",
    "tars",
    "arrow",
    "dict",
    "splits",
    "mixed",
]


def _write_tars(folder: Path) -> None:
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(6 * shard, 6 * shard + 6):
                member = tarfile.TarInfo(f"{number:03d}.text")
                member.size = len(TEXTS[number].encode())
                tar.addfile(member, io.BytesIO(TEXTS[number].encode()))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of data sets."""
    import datasets

    root = tmp_path_factory.mktemp("sets")
    for name in ("mds", "mds_zstd", "litdata", "litdata_zstd_batch"):
        shutil.copytree(WRITTEN / name, root / name)
    _write_tars(root / "tars")
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    rows.save_to_disk(str(root / "arrow"), num_shards=2)
    parts = {"train": rows.select(range(8)), "validation": rows.select(range(8, 12)), "test": rows.select(range(2))}
    datasets.DatasetDict(parts).save_to_disk(str(root / "dict"))
    for name, split in (("mds", "train"), ("mds_zstd", "val"), ("litdata", "test")):
        shutil.copytree(WRITTEN / name, root / "splits" / split)
    shutil.copytree(WRITTEN / "mds", root / "mixed" / "a" / "set")
    (root / "mixed" / "a-b.txt").write_text("one text")
    (root / "mixed" / "a.txt").write_text("another text")
    (root / "mixed" / "weights.bin").write_bytes(b"no shard")
    write_shards(root / "pictures", samples.NUM, 5)
    pictures = {"picture": [samples.picture(number) for number in range(samples.NUM)], "label": [0, 1, 2] * 4}
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    datasets.Dataset.from_dict(pictures, features=features).save_to_disk(str(root / "album"))
    return root


@pytest.fixture(scope="module")
def url(root, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("nginx"), root) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def _settings(tmp_path):
    with own_settings(TRAINKIT_CACHE=tmp_path / "cache", TRAINKIT_STORAGE_TIMEOUT_S=20):
        yield


@needs_nginx
@pytest.mark.parametrize("name", TEXT_SETS)
def test_a_column_of_text_is_that_of_the_path(root, url, name):
    here, there = find_corpus(root / name), find_remote_corpus(f"{url}/{name}", "text")
    expected = [*here.documents()]
    assert [*there.documents()] == expected and len(expected) >= samples.NUM
    assert len(there.unread) == len(here.unread) == (name == "mixed")
    assert any(is_held_out for is_held_out, _ in expected) == (name in ("dict", "splits"))
    assert there.fingerprint(root) == find_remote_corpus(f"{url}/{name}", "text").fingerprint(root)


@needs_nginx
def test_one_tar_behind_a_url_is_a_corpus(url):
    assert [text for _, text in find_remote_corpus(f"{url}/tars/1.tar", "text").documents()] == TEXTS[6:]


@needs_nginx
@pytest.mark.parametrize("name", ["pictures", "album"])
def test_a_column_of_pictures_is_that_of_the_path(root, url, name):
    settings: dict[str, Any] = {"resolution": 4, "labels": "column", "held_out": 0.3}
    here, there = (Images(path=path, **settings).load(progress=False) for path in (root / name, f"{url}/{name}"))
    assert here.describe() == there.describe() and here.classes == there.classes
    for one, other in ((here.train, there.train), (here.held_out, there.held_out)):
        for values, expected in zip(*(d.__getitems__([*range(len(d))]).values() for d in (one, other)), strict=True):
            assert torch.equal(values, expected)


@needs_nginx
def test_arrow_files_behind_a_url_are_random_access(root, url, tmp_path):
    here, there = open_dataset(root / "arrow"), open_dataset(f"{url}/arrow")
    assert [there[index] for index in (11, 0, 7)] == [here[index] for index in (11, 0, 7)] and there.paths() == []
    assert len([*(tmp_path / "cache").glob("shard-*")]) == 2
    assert there.fingerprint == here.fingerprint


def _rows(path: Any, environment: dict[str, str]) -> list[list[int]]:
    import trainkit

    with own_settings(**environment):
        train = Text(path=path, sequence_length=8, vocab_size=100, held_out=0.2).load(progress=False).train
        runtime = trainkit.Runtime(seed=3, device="cpu", tracker=trainkit.Tracker())
        return [
            row for batch in runtime.batches(train, batch_size=4, num_steps=5) for row in batch.data["tokens"].tolist()
        ]


@needs_nginx
def test_two_ranks_read_the_batches_of_the_path(root, url, tmp_path):
    environment = {"TRAINKIT_CACHE": str(tmp_path / "cache")}
    expected = _rows(root / "mds", environment)
    first, second = run_ranks(_rows, 2, f"{url}/mds", environment)
    assert len(expected) == 20
    for step in range(5):
        both = first[2 * step : 2 * step + 2] + second[2 * step : 2 * step + 2]
        assert sorted(both) == sorted(expected[4 * step : 4 * step + 4])


@pytest.mark.skipif(moto() is None, reason=NO_MOTO)
def test_shards_in_s3_are_those_of_the_path(root):
    with bucket() as store:
        there = locate(store)
        for name in ("mds_zstd", "dict", "pictures"):
            for file in locate(root / name).names():
                there.child(f"{name}/{file}").write((root / name / file).read_bytes())
        for name in ("mds_zstd", "dict"):
            assert [*find_remote_corpus(f"{store}/{name}", "text").documents()] == [
                *find_corpus(root / name).documents()
            ]
        far, near = find_remote_source(f"{store}/pictures"), find_source(root / "pictures")
        assert [*far.names()] == [*near.names()]
        name = far.names()[7]
        assert np.array_equal(np.asarray(far.open(name)), np.asarray(near.open(name)))


@needs_nginx
def test_what_cannot_be_read_is_one_line(url):
    with pytest.raises(DataError, match=r"no column 'txt', found .*set data\.field=NAME.*Did you mean 'text'"):
        Text(path=f"{url}/mds", field="txt").load(progress=False)
    with pytest.raises(DataError, match=r"data\.field: must be one of pixels, png, the columns of pictures"):
        Images(path=f"{url}/mds", resolution=4).load(progress=False)
    with pytest.raises(DataError, match=r"holds data sets, one a split: set data\.path to one of .*/splits/train, "):
        Images(path=f"{url}/splits", resolution=4).load(progress=False)
