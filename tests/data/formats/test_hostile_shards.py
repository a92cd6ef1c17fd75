"""Shards that are damaged, or made to do harm, are one line that names the file."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.formats import samples
from tests.data.formats.test_written_by_peers import CASES, WRITTEN
from trainkit.data import open_dataset, read_json
from trainkit.data.formats.litdata_json import decode_json
from trainkit.data.formats.mds_columns import decoder_of
from trainkit.errors import DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))


def copied(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(WRITTEN / name, tmp_path / name))


def shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != "index.json")


def read_all(folder: Path) -> None:
    dataset = open_dataset(folder)
    for number in range(len(dataset)):
        dataset[number]


def edited(folder: Path, change: Any) -> None:
    index = read_json(folder / "index.json")
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", CASES)
def test_a_shard_that_is_cut_short_is_named(tmp_path, name):
    folder = copied(name, tmp_path)
    last = shards(folder)[-1]
    whole = last.read_bytes()
    for length in (0, 3, 9, 30, len(whole) // 2, len(whole) - 1):
        last.write_bytes(whole[:length])
        with pytest.raises(DataError, match=last.name):
            read_all(folder)


@pytest.mark.parametrize("name", CASES)
def test_a_flipped_byte_is_no_crash(tmp_path, name):
    """Another value, or one line: nothing else may come of any byte."""
    folder = copied(name, tmp_path)
    path, generator = shards(folder)[0], np.random.default_rng(0)
    whole, num_errors = path.read_bytes(), 0
    for place in (*range(0, min(len(whole), 64)), *generator.integers(0, len(whole), 60).tolist()):
        content = bytearray(whole)
        content[place] ^= int(generator.integers(1, 256))
        path.write_bytes(content)
        try:
            read_all(folder)
        except DataError as error:
            num_errors += 1
            assert path.name in str(error) and "\n" not in str(error)
    assert num_errors > 10


@pytest.mark.parametrize("name", ["mds", "litdata", "litdata_zstd_sample"])
@pytest.mark.parametrize(
    ("offsets", "says"),
    [
        ((1 << 31, 1 << 31), "cut short or damaged"),
        ((0, 8), "cut short or damaged"),
        ((200, 100), "sample 0 ends before it begins"),
    ],
)
def test_offsets_that_cannot_be_are_named(tmp_path, name, offsets, says):
    folder = copied(name, tmp_path)
    path = shards(folder)[0]
    content = bytearray(path.read_bytes())
    count = struct.unpack_from("<I", content)[0]
    table = np.linspace(offsets[0], offsets[1], count + 1).astype("<u4")
    content[4 : 4 + table.nbytes] = table.tobytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path.name}.*{says}"):
        read_all(folder)


@pytest.mark.parametrize("outside", ["../other.bin", "/etc/passwd", "a/../../b", "", 3, "..\\b", "http://a/b"])
@pytest.mark.parametrize("name", ["mds", "mds_zstd", "litdata"])
def test_an_index_names_only_files_beside_it(tmp_path, name, outside):
    folder = copied(name, tmp_path)

    def change(index: dict[str, Any]) -> None:
        if name == "litdata":
            index["chunks"][1]["filename"] = outside
        else:
            index["shards"][0]["raw_data" if name == "mds" else "zip_data"]["basename"] = outside

    edited(folder, change)
    with pytest.raises(DataError, match=r"index\.json names the file .*, which does not lie beside it"):
        open_dataset(folder)


@pytest.mark.parametrize("name", ["mds", "mds_zstd", "litdata", "litdata_zstd_chunk"])
def test_a_shard_that_is_missing_is_named(tmp_path, name):
    folder = copied(name, tmp_path)
    last = shards(folder)[-1]
    last.unlink()
    dataset = open_dataset(folder)
    with pytest.raises(DataError, match=rf"{last.name} is not there, and \S*index\.json names it; copy"):
        dataset[samples.NUM - 1]


def test_counts_that_differ_are_named(tmp_path):
    folder = copied("mds", tmp_path)
    edited(folder, lambda index: index["shards"][0].update(samples=2))
    with pytest.raises(DataError, match=r"shard\.00000\.mds holds \d samples, and its index says 2"):
        read_all(folder)
    folder = copied("litdata", tmp_path)
    edited(folder, lambda index: index["chunks"][0].update(chunk_size=2))
    with pytest.raises(DataError, match=r"chunk-0-0\.bin holds 5 items, and its index says 2"):
        read_all(folder)


@pytest.mark.parametrize("name", ["mds_zstd", "mds_gz", "mds_bz2", "mds_br", "litdata_zstd_chunk"])
@pytest.mark.parametrize("factor", [0.5, 2])
def test_a_shard_expands_to_what_its_index_says(tmp_path, name, factor):
    """So that a small file cannot fill the disk."""
    folder = copied(name, tmp_path)

    def change(index: dict[str, Any]) -> None:
        for entry in index.get("shards", []):
            entry["raw_data"]["bytes"] = int(entry["raw_data"]["bytes"] * factor)
        for entry in index.get("chunks", []):
            entry["chunk_bytes"] = int(entry["chunk_bytes"] * factor)

    edited(folder, change)
    with pytest.raises(DataError, match="bytes when it is decompressed, and its index says"):
        read_all(folder)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


MDS_CHANGES = [
    ({"version": 1}, "format mds, version 1: only MDS, version 2, is read"),
    ({"format": "json"}, "format json"),
    ({"samples": -1}, "-1 samples"),
    ({"samples": "many"}, "'many' samples"),
    ({"column_names": ["text"]}, "columns without encodings or sizes"),
    ({"column_names": ["text", "text"]}, r"the columns \['text', 'text'\]"),
    ({"column_sizes": [-1, None]}, "a size that is no number"),
    ({"column_encodings": [3, "str"]}, "an encoding that is no text"),
    ({"column_encodings": ["unknown", "str"]}, r"the encoding 'unknown', which is not known.*columns=\['text'\]"),
    ({"column_encodings": ["ndarray:object", "str"]}, "the encoding 'ndarray:object', which is not known"),
    ({"column_encodings": ["ndarray:int32:a", "str"]}, "the encoding 'ndarray:int32:a', which is not known"),
    ({"compression": "lzma"}, r"compressed by 'lzma' to \d+ bytes; zstd, gz, bz2, br are read"),
    ({"raw_data": None}, "does not say where its shards are"),
]


@pytest.mark.parametrize(("change", "says"), MDS_CHANGES, ids=lambda value: str(value)[:30])
def test_a_damaged_index_of_mds_is_one_line(tmp_path, change, says):
    folder = copied("mds_zstd", tmp_path)
    edited(folder, lambda index: index["shards"][0].update(change))
    with pytest.raises(DataError, match=says):
        open_dataset(folder)


LITDATA_CHANGES = [
    ({"data_format": None}, r"index\.json is damaged \(no data_format\)"),
    ({"data_format": ["str"]}, "data_format does not fit data_spec"),
    ({"data_format": ["video", 3]}, "a data_format that is no text"),
    ({"data_spec": None}, "data_spec is not readable"),
    ({"data_spec": "[2, {}]"}, r"data_spec is not readable \(protocol 2\)"),
    ({"data_spec": "[" * 100_000}, "nested too deeply"),
    ({"data_spec": '[1, {"type": "os.system", "context": "null", "children_spec": []}]'}, "samples of os.system"),
    ({"encryption": {"algorithm": "fernet"}}, "its chunks are encrypted, which is not read"),
    ({"item_loader": "ParquetLoader"}, "parquet files: read these by themselves"),
    ({"compression": "lz4", "compression_level": None}, "compressed by 'lz4'; zstd is read"),
]


@pytest.mark.parametrize(("change", "says"), LITDATA_CHANGES, ids=lambda value: str(value)[:30])
def test_a_damaged_index_of_litdata_is_one_line(tmp_path, change, says):
    folder = copied("litdata_zstd_batch", tmp_path)
    edited(folder, lambda index: index["config"].update(change))
    with pytest.raises(DataError, match=says):
        open_dataset(folder)


def test_deep_trees_are_no_crash(tmp_path):
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    for _ in range(300):
        leaf = {"type": "builtins.list", "context": "null", "children_spec": [leaf]}
    folder = copied("litdata", tmp_path)
    edited(folder, lambda index: index["config"].update(data_format=["int"], data_spec=json.dumps([1, leaf])))
    with pytest.raises(DataError, match=r"data_spec is not readable \(it is nested too deeply\)"):
        open_dataset(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\xff"])
def test_an_index_that_is_no_json_is_named(tmp_path, text):
    folder = copied("mds", tmp_path)
    (folder / "index.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"index\.json is no"):
        open_dataset(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"\x05\xff\xff\xff\xff",
        b"\x01\xff\xff\xff\x7f",
        b"\x06\xff\xff\xff\xff\x00\x00\x00\x00",
        b"\x06\xff\xff\xff\xff\x01\x00\x00\x00\x01\x00\x00\x00a",
        b"\x02\x04\x00\x00\x00",
        b"\x63",
        b"\x14",
        (b"\x05\x01\x00\x00\x00\x01\x00\x00\x00a") * 2000,
        b"[" * 100_000,
        b"",
    ],
)
def test_compact_json_that_is_none_is_a_value_error(content):
    with pytest.raises(ValueError):
        decode_json(content)


def test_pixels_are_counted_before_a_picture_is_made():
    decode = decoder_of("pil")
    assert decode is not None
    with pytest.raises(ValueError, match="4294967295 x 4294967295 pixels of RGB are"):
        decode(struct.pack("<III", 0xFFFFFFFF, 0xFFFFFFFF, 3) + b"RGB" + bytes(30))
    with pytest.raises(ValueError, match="pixels of mode"):
        decode(struct.pack("<III", 1, 1, 3) + b"XYZ" + bytes(30))


def test_a_frame_of_gigabytes_is_not_made(tmp_path):
    folder = copied("litdata_zstd_batch", tmp_path)
    path = shards(folder)[0]
    content = bytearray(path.read_bytes())
    count = struct.unpack_from("<I", content, 12)[0]
    table = np.zeros(count + 1, "<u4")
    table[1:] = 0xFFFFFFF0
    content[24 : 24 + table.nbytes] = table.tobytes()
    frames = 24 + table.nbytes
    struct.pack_into("<I", content, frames + 20, 0xFFFFFFF0)
    for number in range(1, -(-count // 2)):
        struct.pack_into("<I", content, frames + 24 * number + 20, 0)
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path.name}: a group of items has more than"):
        read_all(folder)
