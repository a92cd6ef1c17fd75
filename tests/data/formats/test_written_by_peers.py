"""Shards that mosaicml-streaming and litdata wrote (by write_samples.py) hold what was given to them."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.formats import samples
from trainkit.data import open_dataset
from trainkit.errors import DataError

WRITTEN = Path(__file__).parent / "written"
CASES = {
    "mds": samples.mds,
    **dict.fromkeys(["mds_zstd", "mds_gz", "mds_bz2", "mds_br"], samples.small),
    "litdata": samples.litdata,
    **dict.fromkeys(["litdata_zstd_batch", "litdata_zstd_chunk", "litdata_zstd_sample"], samples.plain),
    **dict.fromkeys(["litdata_rows", "litdata_rows_zstd"], samples.rows),
}


def same(left: Any, right: Any) -> bool:
    """Whether two samples are equal, with the types and shapes of their values."""
    if isinstance(left, Image.Image):
        return left.mode == right.mode and np.array_equal(np.asarray(left), np.asarray(right))
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, dict):
        return [*left] == [*right] and all(same(left[name], right[name]) for name in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", CASES)
def test_every_sample_is_the_one_that_was_written(name):
    dataset, expected = open_dataset(WRITTEN / name), [CASES[name](number) for number in range(samples.NUM)]
    assert len(dataset) == samples.NUM == dataset.block_sizes.sum()
    assert all(same(dataset[number], expected[number]) for number in range(samples.NUM))
    order = [7, 0, 11, 7, -1, 3]
    assert all(same(found, expected[number]) for number, found in zip(order, dataset.__getitems__(order), strict=True))


@pytest.mark.parametrize("name", ["mds", "litdata", "litdata_rows", "litdata_zstd_batch"])
def test_only_the_columns_asked_for_are_in_a_sample(name):
    dataset = open_dataset(WRITTEN / name, columns=["text"])
    assert dataset[5] == {"text": samples.text(5)}
    with pytest.raises(DataError, match=r"no column 'txt', found .*'text' \(str\).*Did you mean 'text'"):
        open_dataset(WRITTEN / name, columns=["txt"])


def test_streams_of_tokens_are_divided_chunk_by_chunk():
    """By litdata's own rule: what is left at the end of a chunk is in no sample."""
    dataset = open_dataset(WRITTEN / "litdata_tokens", block_size=samples.BLOCK)
    chunks = [0, *np.cumsum([chunk["chunk_size"] for chunk in _chunks("litdata_tokens")]).tolist()]
    expected: list[torch.Tensor] = []
    for first, last in pairwise(chunks):
        stream = torch.cat([samples.stream(number) for number in range(first, last)])
        expected += stream[: len(stream) // samples.BLOCK * samples.BLOCK].split(samples.BLOCK)
    assert len(dataset) == len(expected) > 5
    assert all(same(dataset[number], expected[number]) for number in range(len(expected)))
    with pytest.raises(DataError, match=r"streams of token ids, not text.*block_size=TOKENS"):
        open_dataset(WRITTEN / "litdata_tokens")


def _chunks(name: str) -> list[dict[str, Any]]:
    from trainkit.data import read_json

    return read_json(WRITTEN / name / "index.json")["chunks"]


@pytest.mark.parametrize("name", ["mds_pickle", "litdata_pickle"])
def test_pickles_are_refused_by_name_and_others_read(name):
    with pytest.raises(DataError, match=r"column 'thing' holds pickle.* give columns=\['text'\]"):
        open_dataset(WRITTEN / name)
    assert open_dataset(WRITTEN / name, columns=["text"])[3] == {"text": "a"}
