"""Shards of other tools on a disk: splits in subfolders, hashes in their index, and what commands take them for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.formats import samples
from tests.data.formats.test_tars import write_shards
from tests.data.formats.test_written_by_peers import WRITTEN
from trainkit.audit.given import Given
from trainkit.cli.main import main
from trainkit.data import Text, open_dataset
from trainkit.data.corpus import find_corpus
from trainkit.data.curate.kinds import kind_of
from trainkit.data.formats import hashes
from trainkit.data.image_sources import find_source
from trainkit.data.shards.prepare import prepare
from trainkit.errors import DataError

MORE = [f"another text of number {number}" for number in range(40)]
TEXTS = [samples.text(number) for number in range(samples.NUM)]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))


def splits(folder: Path, *names: str) -> Path:
    for name, kind in zip(names, ("mds", "litdata", "mds_zstd"), strict=False):
        shutil.copytree(WRITTEN / kind, folder / name)
    (folder / "more.txt").write_text("\n\n".join(MORE))
    return folder


@pytest.mark.parametrize("names", [("train", "val"), ("train", "validation", "test"), ("train", "test", "dev")])
def test_a_split_in_a_subfolder_is_held_out(tmp_path, names):
    """One of them: of three, the last one is for neither."""
    root = splits(tmp_path / "set", *names)
    found = [*find_corpus(root).documents()]
    assert found == [(True, text) for text in TEXTS] + [(False, text) for text in [*MORE, *TEXTS]]
    loaded = Text(path=root, vocab_size=100, sequence_length=8).load(progress=False)
    assert loaded.facts["held-out documents"] == samples.NUM
    assert [text for _, text in find_corpus(root / names[1]).documents()] == TEXTS
    assert Text(path=root / names[1], vocab_size=100, held_out=0.3, sequence_length=8).load(progress=False).train


def test_data_sets_that_are_no_splits_are_all_trained_on(tmp_path):
    root = splits(tmp_path / "set", "books", "test")
    assert [*find_corpus(root).documents()] == [(False, text) for text in [*TEXTS, *MORE, *TEXTS]]


def test_images_of_splits_say_which_to_give(tmp_path):
    root = splits(tmp_path / "set", "train", "val")
    with pytest.raises(DataError, match=r"holds data sets, one a split: set data\.path to one of .*/train, .*/val"):
        find_source(root)


# -- hashes ------------------------------------------------------------------------------------------------------------


def hashed(tmp_path: Path, name: str, key: str, function: str) -> Path:
    """A copy of a data set of MDS, with a hash of each file."""
    folder = tmp_path / "hashed"
    shutil.copytree(WRITTEN / name, folder)
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        of_file = hashes._KNOWN[function]()
        of_file.update((folder / shard[key]["basename"]).read_bytes())
        shard[key]["hashes"] = {function: of_file.hexdigest(), "crc32": "0"}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("function", ["sha1", "xxh64", "md5"])
@pytest.mark.parametrize(("name", "key"), [("mds", "raw_data"), ("mds_zstd", "zip_data")])
def test_a_shard_with_another_hash_is_named(tmp_path, name, key, function):
    folder = hashed(tmp_path, name, key, function)
    assert [sample["text"] for sample in open_dataset(folder, columns=["text"])] == TEXTS
    shard = sorted(folder.glob("shard.*"))[-1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=rf"shard\.0000.* is damaged: its {function} is .*; copy the shard again"):
        [*open_dataset(folder, columns=["text"])]


def test_a_hash_is_checked_once_for_each_state(tmp_path, monkeypatch):
    folder, checked = hashed(tmp_path, "mds", "raw_data", "xxh64"), list[str]()
    check = hashes._check

    def noted(location: Any, expected: Any) -> None:
        checked.append(location.shown)
        check(location, expected)

    monkeypatch.setattr(hashes, "_check", noted)
    for _ in range(2):
        assert len([*open_dataset(folder, columns=["text"])]) == samples.NUM
    assert len(checked) == len({*checked}) == len([*folder.glob("*.mds")])


def test_hashes_that_cannot_be_checked_are_said(tmp_path):
    folder = hashed(tmp_path, "mds", "raw_data", "sha1")
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["raw_data"]["hashes"] = {"crc32": "0"}
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"index\.json has the hashes crc32, and only xxh3_128, .* are checked"):
        open_dataset(folder)


# -- commands ----------------------------------------------------------------------------------------------------------


def test_tars_of_pictures_are_taken_for_pictures(tmp_path, capsys):
    pytest.importorskip("imagehash", reason="inspection of images needs the extra curate")
    write_shards(tmp_path / "tars", samples.NUM, 5)
    assert kind_of(tmp_path / "tars") == ("images", 0) and Given(tmp_path / "tars").content == "pictures"
    assert len([*Given(tmp_path / "tars").entries()]) == samples.NUM
    assert main(["data", "inspect", str(tmp_path / "tars"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == samples.NUM
    settings = {"resolution": 4, "labels": "column"}
    made = prepare(tmp_path / "tars", tmp_path / "to", num_workers=1, settings=settings, progress=False)
    assert made.index.kind == "images" and made.index.more["classes"] == ["0", "1", "2"]


def test_shards_of_text_are_taken_for_text():
    assert kind_of(WRITTEN / "litdata_rows") == ("text", 0) and Given(WRITTEN / "litdata_rows").content == "text"
    assert [entry.text for entry in Given(WRITTEN / "litdata_rows").entries()] == TEXTS


@pytest.mark.parametrize("words", [["inspect", "{}"], ["audit", "{}", "here"], ["select", "{}", "--to", "x"]])
def test_a_url_is_one_line_where_it_is_not_read(words, capsys):
    with pytest.raises(SystemExit):
        main(["data", *(word.format("s3://bucket/texts") for word in words)])
    last = capsys.readouterr().err.splitlines()[-1]
    assert "s3://bucket/texts: what lies behind a URL is not read here; copy it to a disk" in last


def test_a_split_of_shards_gives_the_same_windows_again(tmp_path):
    root = splits(tmp_path / "set", "train", "val")
    one, other = (Text(path=root, vocab_size=100, sequence_length=8).load(progress=False) for _ in range(2))
    assert one.fingerprints() == other.fingerprints()
    assert torch.equal(one.train[1]["tokens"], other.train[1]["tokens"])
