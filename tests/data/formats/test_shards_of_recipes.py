"""Recipes read shards as they read files: a column of text, and a column of pictures with labels."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.formats import samples
from tests.data.formats.test_tars import write_shards
from tests.data.formats.test_written_by_peers import WRITTEN
from tests.jobs import run
from tests.recipes.test_any_folder import BERT, GAN, SHORT
from trainkit.data import Images, Text
from trainkit.data.corpus import find_corpus
from trainkit.data.image_sources import find_source
from trainkit.data.labels import find_labels
from trainkit.errors import DataError

TEXTS = [samples.text(number) for number in range(samples.NUM)]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["mds", "mds_zstd", "litdata", "litdata_rows", "litdata_zstd_batch", "mds_pickle"])
def test_a_column_of_text_is_a_corpus(name):
    """One with a column of pickles beside it, too: that is not read."""
    found = [text for _, text in find_corpus(WRITTEN / name).documents()]
    assert found == (["a"] * samples.NUM if name == "mds_pickle" else TEXTS)


def test_files_of_text_in_tars_are_a_corpus(tmp_path):
    (tmp_path / "tars").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "tars" / f"{shard}.tar", "w") as tar:
            for number in range(6 * shard, 6 * shard + 6):
                member = tarfile.TarInfo(f"{number:03d}.txt")
                member.size = len(TEXTS[number].encode())
                tar.addfile(member, io.BytesIO(TEXTS[number].encode()))
    assert [text for _, text in find_corpus(tmp_path / "tars", "txt").documents()] == TEXTS
    assert [text for _, text in find_corpus(tmp_path / "tars" / "1.tar", "txt").documents()] == TEXTS[6:]
    with pytest.raises(DataError, match=r"no column 'text', found 'txt' \(files\); set data.field=NAME"):
        [*find_corpus(tmp_path / "tars").documents()]


def test_a_folder_may_hold_shards_and_files(tmp_path):
    (tmp_path / "a").mkdir()
    for path in (WRITTEN / "mds").iterdir():
        (tmp_path / "a" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "b.txt").write_text("one more")
    (tmp_path / "weights.bin").write_bytes(b"no shard")
    corpus = find_corpus(tmp_path)
    assert [text for _, text in corpus.documents()] == [*TEXTS, "one more"]
    assert [path.name for path in corpus.unread] == ["weights.bin"]
    first = corpus.fingerprint(tmp_path / "memory")
    shard = tmp_path / "a" / "shard.00001.mds"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert find_corpus(tmp_path).fingerprint(tmp_path / "memory") != first


@pytest.mark.parametrize(
    ("name", "field", "says"),
    [
        ("mds", "tokens", "column 'tokens' holds ndarray:int32, not text.*Token ids are read in your own loop"),
        ("litdata", "vector", "column 'vector' holds no_header_tensor:18, not text"),
        ("mds", "txt", "no column 'txt', found .*set data.field=NAME.*Did you mean 'text'"),
        ("litdata_tokens", "text", "streams of token ids, not text"),
    ],
)
def test_a_column_that_is_no_text_says_what_is(name, field, says):
    with pytest.raises(DataError, match=says):
        [*find_corpus(WRITTEN / name, field).documents()]


def test_tokens_are_those_of_the_same_text_in_a_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS))
    settings: dict[str, Any] = {"vocab_size": 100, "sequence_length": 8, "held_out": 0.2}
    one = Text(path=tmp_path / "a.jsonl", **settings).load(progress=False)
    other = Text(path=WRITTEN / "litdata_zstd_batch", **settings).load(progress=False)
    assert one.facts["tokens"] == other.facts["tokens"] and len(one.train) == len(other.train)
    for number in range(len(one.train)):
        assert torch.equal(one.train[number]["tokens"], other.train[number]["tokens"])


@pytest.mark.parametrize(("name", "field"), [("mds", "png"), ("mds", "pixels"), ("litdata", "picture"), ("tars", None)])
def test_a_column_of_pictures_is_a_source_of_images(tmp_path, name, field):
    folder = WRITTEN / name
    if name == "tars":
        folder = tmp_path / "tars"
        write_shards(folder, samples.NUM, 5)
    source, first = find_source(folder, field), int(field == "png")
    names = source.names()
    assert len(names) == samples.NUM and [*names] == sorted(names) and source.not_read() == {}
    for number, each in enumerate(names):
        assert np.array_equal(np.asarray(source.open(each)), samples.pixels(number + first))
    assert source.fingerprint(tmp_path / "memory") == find_source(folder, field).fingerprint(tmp_path / "other")


def test_several_columns_of_pictures_are_listed():
    with pytest.raises(DataError, match=r"data\.field: must be one of pixels, png, the columns of pictures"):
        find_source(WRITTEN / "mds")
    with pytest.raises(DataError, match=r"data\.field=pgn: must be one of blob, pixels, png.*Did you mean 'png'"):
        find_source(WRITTEN / "mds", "pgn")
    with pytest.raises(DataError, match="has no column of pictures, found 'label'"):
        find_source(WRITTEN / "mds_zstd")


def test_classes_are_those_of_a_column(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the datasets library writes what is read")
    write_shards(tmp_path / "tars", samples.NUM, 5)
    labels = find_labels(find_source(tmp_path / "tars"), "column")
    assert labels is not None and labels.classes == ("0", "1", "2")
    assert [*labels.of] == [number % 3 for number in range(samples.NUM)]
    features = datasets.Features({"p": datasets.Image(), "kind": datasets.ClassLabel(names=["fox", "hill", "sky"])})
    rows = {"p": [samples.picture(number) for number in range(9)], "kind": [2, 0] * 4 + [2]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "arrow")
    labels = find_labels(find_source(tmp_path / "arrow", label_field="kind"), "column")
    assert labels is not None and labels.classes == ("fox", "sky") and [*labels.of] == [1, 0] * 4 + [1]
    with pytest.raises(DataError, match=r"no column of labels, found 'p' \(Image\).*set data\.label_field=COLUMN"):
        find_labels(find_source(tmp_path / "arrow"), "column")
    with pytest.raises(DataError, match=r"data\.labels=folders: data\.path holds no folders.*set data\.labels=column"):
        find_labels(find_source(tmp_path / "tars"), "folders")


def test_settings_of_columns_need_columns(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"data\.field=png, data\.label_field=None: .* has no columns"):
        find_source(tmp_path, "png")
    with pytest.raises(DataError, match=r"data\.labels=column: data\.path has no columns"):
        find_labels(find_source(tmp_path), "column")


def test_a_broken_picture_is_skipped_or_named(tmp_path):
    write_shards(tmp_path / "tars", 30, 10)
    path = tmp_path / "tars" / "a-001.tar"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x89PNG", b"????", 1))
    settings: dict[str, Any] = {"path": tmp_path / "tars", "resolution": 4, "labels": "column"}
    with pytest.raises(DataError, match=r"a-001\.tar/in/00010 cannot be read as an image .*data\.on_unreadable=skip"):
        Images(**settings).load(progress=False)
    loaded = Images(on_unreadable="skip", **settings).load(progress=False)
    assert loaded.facts["unreadable images"] == 1 and loaded.classes == ("0", "1", "2")
    assert len(loaded.train) + len(loaded.held_out) == loaded.facts["images"]


def test_jobs_train_on_shards(tmp_path):
    write_shards(tmp_path / "tars", 60, 10)
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    few = [*BERT, f"data.path={WRITTEN / 'litdata_rows'}", "data.sequence_length=8", "data.held_out=0.3", cache]
    result = run([*few, *SHORT, f"run_dir={tmp_path / 'text'}"])
    assert result.returncode == 0, result.stderr
    pictures = [*GAN, "data.resolution=8", f"data.path={tmp_path / 'tars'}", "data.labels=column", cache]
    result = run([*pictures, *SHORT, f"run_dir={tmp_path / 'pictures'}"], ranks=2)
    assert result.returncode == 0, result.stderr


def test_names_of_one_tar_may_come_twice(tmp_path):
    """In webdataset, samples of one name that do not follow one another are two."""
    path = Path(tmp_path / "a.tar")
    with tarfile.open(path, "w") as tar:
        for number, key in enumerate("aba"):
            file = io.BytesIO()
            samples.picture(number).save(file, "PNG")
            member = tarfile.TarInfo(f"{key}.png")
            member.size = len(file.getvalue())
            tar.addfile(member, io.BytesIO(file.getvalue()))
    source = find_source(path)
    assert [*source.names()] == ["a.tar/a", "a.tar/a#2", "a.tar/b"]
    assert np.array_equal(np.asarray(source.open("a.tar/a#2")), samples.pixels(2))
