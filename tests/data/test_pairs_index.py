"""The index of sentence pairs is written part by part, in the memory of some documents."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from trainkit.data.documents import pieces
from trainkit.data.growing_array import GrowingArray
from trainkit.data.pairs import NUM_SPECIAL, SentencePairs
from trainkit.data.token_file import TokenFile

START, END, PAD, LENGTH = 1, 2, 0, 16
NAMES = ("starts.npy", "lengths.npy", "firsts.npy", "lasts.npy")


def stream(folder: Path, num: int, seed: int = 0) -> TokenFile:
    """Documents of 0 to 60 tokens, of which some have none or one."""
    draw, path = np.random.default_rng(seed), folder / "train.bin"
    lengths = draw.integers(0, 61, num) * draw.integers(0, 2, num)
    documents = [np.append(draw.integers(3, 100, length), END) for length in lengths]
    np.concatenate(documents).astype(np.uint16).tofile(path)
    return TokenFile(path, np.dtype(np.uint16))


def pairs(tokens: TokenFile, cache: Path) -> SentencePairs:
    return SentencePairs(tokens, LENGTH, start=START, end=END, pad=PAD, content="x", cache=cache)


def _of_the_whole(tokens: TokenFile) -> list[np.ndarray]:
    """The index as it was made from all documents at once."""
    starts, lengths = pieces(tokens.ends(END), LENGTH - NUM_SPECIAL)
    is_first = np.ones(len(starts), bool)
    is_first[1:] = starts[1:] != starts[:-1] + lengths[:-1]
    document, kept = np.cumsum(is_first), lengths > 1
    document = document[kept]
    found = (np.searchsorted(document, document, side) for side in ("left", "right"))
    return [starts[kept], lengths[kept], *found]


@pytest.mark.parametrize("at_once", [1, 7, 64, 1 << 22])
def test_its_parts_make_the_same_files(tmp_path, monkeypatch, at_once):
    tokens = stream(tmp_path, 300)
    monkeypatch.setattr("trainkit.data.token_file._SCANNED_AT_ONCE", at_once)
    index = pairs(tokens, tmp_path / "cache")._index
    for name, values in zip(NAMES, _of_the_whole(tokens), strict=True):
        np.save(tmp_path / name, values)
        assert (index / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_its_memory_does_not_grow_with_documents(tmp_path, monkeypatch):
    monkeypatch.setattr("trainkit.data.token_file._SCANNED_AT_ONCE", 1 << 12)
    peaks = []
    for num in (2_000, 40_000):
        (tmp_path / str(num)).mkdir()
        tokens = stream(tmp_path / str(num), num)
        tracemalloc.start()
        pairs(tokens, tmp_path / str(num) / "cache")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 1e6


@pytest.mark.parametrize("parts", [[], [0], [3, 0, 5], [1] * 1200])
def test_a_growing_array_is_the_file_of_numpy(tmp_path, parts):
    values = np.arange(sum(parts), dtype=np.int32)
    with GrowingArray(tmp_path / "a.npy", np.dtype(np.int32)) as array:
        for part in np.split(values, np.cumsum(parts)[:-1]) if parts else []:
            array.append(part)
        assert len(array) == len(values)
    np.save(tmp_path / "b.npy", values)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
