"""A data set in shards is used as any other: by index, in workers, in own loops."""

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trainkit
from tests.data.formats import samples
from tests.data.formats.test_written_by_peers import WRITTEN
from trainkit.data import ShardedDataset, open_dataset
from trainkit.data.fingerprint import fingerprint
from trainkit.errors import DataError

TEXTS = [samples.text(number) for number in range(samples.NUM)]


@pytest.fixture(params=["mds", "litdata", "litdata_rows", "litdata_zstd_batch"])
def dataset(request) -> ShardedDataset:
    return open_dataset(WRITTEN / request.param, columns=["text"])


def test_indices_are_those_of_a_list(dataset):
    for index in (*range(-samples.NUM, samples.NUM), np.int64(3)):
        assert dataset[index]["text"] == TEXTS[index]
    assert [sample["text"] for sample in dataset] == TEXTS
    for index in (samples.NUM, -samples.NUM - 1):
        with pytest.raises(IndexError):
            dataset[index]
        with pytest.raises(IndexError):
            dataset.__getitems__([0, index])
    with pytest.raises(TypeError):
        dataset["text"]
    assert dataset.__getitems__([]) == []


def test_a_copy_reads_the_same_samples(dataset):
    assert dataset[7] is not None  # something is open
    copy = pickle.loads(pickle.dumps(dataset))
    assert [sample["text"] for sample in copy] == TEXTS
    assert fingerprint(copy) == fingerprint(dataset)
    assert dataset.prefetch(np.arange(5)) is None


def test_other_content_or_columns_are_another_fingerprint(tmp_path):
    """Of the same index: rows of one length may differ in their bytes only."""
    folder = tmp_path / "mds"
    folder.mkdir()
    for path in (WRITTEN / "mds").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    one = open_dataset(WRITTEN / "mds").fingerprint
    assert open_dataset(folder).fingerprint == one
    assert open_dataset(folder, columns=["text"]).fingerprint != one
    shard = folder / "shard.00000.mds"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert open_dataset(folder).fingerprint != one


class Noisy:
    def __call__(self, sample: Any) -> dict[str, Any]:
        return {"drawn": torch.tensor(random.random()), "length": len(sample["text"])}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_function_of_samples_draws_by_their_position(num_workers):
    runtime = trainkit.Runtime(seed=3, device="cpu")
    mapped = open_dataset(WRITTEN / "mds", columns=["text"]).map(Noisy())
    assert mapped.block_sizes.sum() == len(mapped)
    batches = [*runtime.batches(mapped, batch_size=4, num_steps=6, num_workers=num_workers)]
    alone = [*trainkit.Runtime(seed=3, device="cpu").batches(mapped, batch_size=4, num_steps=6)]
    for batch, other in zip(batches, alone, strict=True):
        assert torch.equal(batch.drawn, other.drawn)
        assert batch.length.tolist() == [len(TEXTS[index]) for index in batch.indices.tolist()]
    assert len({value for batch in batches for value in batch.drawn.tolist()}) == 24


def test_what_is_no_data_set_says_what_is_there(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"found nothing; what is read: an index\.json of mosaicml-streaming"):
        open_dataset(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"found .*1 \.txt.*tars that are compressed must be decompressed first"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match=r"a\.txt is a single file"):
        open_dataset(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"written holds several data sets; give one of \S*/litdata"):
        open_dataset(WRITTEN)
    with pytest.raises(DataError, match="block_size=8 is for streams of tokens"):
        open_dataset(WRITTEN / "mds", block_size=8)
    with pytest.raises(DataError, match="block_size=0: must be 1 or more"):
        open_dataset(WRITTEN / "mds", block_size=0)


def test_an_index_may_be_given_itself():
    assert len(open_dataset(WRITTEN / "mds" / "index.json")) == samples.NUM
    assert len(open_dataset(str(WRITTEN / "litdata"))) == samples.NUM


def test_whole_shards_are_decompressed_once(tmp_path):
    cache = tmp_path / "cache"
    first = open_dataset(WRITTEN / "mds_zstd", cache_dir=cache)
    assert not cache.exists()  # before a sample is asked for
    assert first[0] == samples.small(0)
    found = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert open_dataset(WRITTEN / "mds_zstd", cache_dir=cache)[11] == samples.small(11)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == found


def test_a_shard_that_is_there_decompressed_is_used(tmp_path):
    import pyarrow

    for path in (WRITTEN / "mds_zstd").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    packed = Path(tmp_path / "shard.00000.mds.zstd")
    with pyarrow.input_stream(str(packed), compression="zstd") as file:
        packed.with_suffix("").write_bytes(file.read())
    packed.unlink()
    assert open_dataset(tmp_path, cache_dir=tmp_path / "cache")[5] == samples.small(5)
