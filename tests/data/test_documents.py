"""Documents in windows: none is lost or divided without need, and the index is a function of the tokens."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainkit.data import Text
from trainkit.data.documents import NO_DOCUMENT, PackedDocuments, pack
from trainkit.data.token_file import TokenFile
from trainkit.errors import DataError

START, END, PAD = 2, 3, 0


def write(path: Path, documents: list[list[int]]) -> Path:
    path.write_bytes(np.array([token for document in documents for token in (*document, END)], np.uint16).tobytes())
    return path


def make(tmp_path: Path, documents: list[list[int]], form: Any = "apart", **settings) -> PackedDocuments:
    path = write(tmp_path / "train.bin", documents)
    given = {"content": str(hash(str(documents))), "cache": tmp_path / "cache", **settings}
    return PackedDocuments(TokenFile(path, np.dtype(np.uint16)), 8, start=START, end=END, pad=PAD, form=form, **given)


def documents_in(batch: dict[str, torch.Tensor]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for tokens, numbers in zip(batch["tokens"].tolist(), batch["documents"].tolist(), strict=True):
        for token, number in zip(tokens, numbers, strict=True):
            if number == NO_DOCUMENT:
                assert token == PAD
            else:
                found.setdefault(number, []).append(token)
    return found


LONG = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]  # three pieces in windows of eight
DOCUMENTS = [[5], [], LONG, [6, 7], [8], [9, 9, 9, 9, 9, 9], []]
PIECES = [[5], LONG[:6], LONG[6:12], LONG[12:], [6, 7], [8], [9] * 6]


@pytest.mark.parametrize("form", ["apart", "padded"])
def test_every_document_is_there_once_whole_or_in_pieces(tmp_path, form):
    dataset = make(tmp_path, DOCUMENTS, form)
    assert dataset.num_documents == len(PIECES)
    batch = dataset.__getitems__(list(range(len(dataset))))
    expected = {number: [START, *piece, END] for number, piece in enumerate(PIECES)}
    assert documents_in(batch) == expected
    for numbers in batch["documents"].tolist():  # the tokens of a document are consecutive, and padding is at the end
        used = [number for number in numbers if number != NO_DOCUMENT]
        assert numbers == used + [NO_DOCUMENT] * (len(numbers) - len(used))
        assert [number for i, number in enumerate(used) if used[i - 1 : i] != [number]] == sorted(set(used))
    assert len(dataset) == (len(PIECES) if form == "padded" else 5)
    again = pickle.loads(pickle.dumps(dataset))
    one, other = dataset.__getitems__([1]), again.__getitems__([1])
    assert [torch.equal(one[name], other[name]) for name in ("tokens", "documents")] == [True, True]
    assert len(dataset[-2:]) == 2
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_padding_reaches_to_the_longest_of_a_batch_only(tmp_path):
    dataset = make(tmp_path, DOCUMENTS, "padded")
    assert dataset.__getitems__([0, 4])["tokens"].tolist() == [[START, 5, END, PAD], [START, 6, 7, END]]
    assert dataset[0]["documents"].tolist() == [0, 0, 0]


def test_packing_fills_windows_and_is_the_same_each_time():
    lengths = np.random.default_rng(0).integers(3, 65, 5000)
    documents, bounds = pack(lengths, 64)
    assert sorted(documents.tolist()) == list(range(5000))
    filled = np.add.reduceat(lengths[documents], bounds[:-1])
    assert bounds[0] == 0 and bounds[-1] == 5000 and filled.max() <= 64
    assert filled.mean() > 0.98 * 64
    assert all(np.array_equal(a, b) for a, b in zip(pack(lengths, 64), (documents, bounds), strict=True))
    none, ends = pack(lengths[:0], 64)
    assert len(none) == 0 and ends.tolist() == [0]


def test_a_choice_of_windows_keeps_the_numbers_of_documents(tmp_path):
    documents = [[5 + n] * (1 + n % 6) for n in range(60)]
    whole, some = (make(tmp_path, documents, most=most) for most in (None, 7))
    assert len(some) == 7 < len(whole) and some.num_documents == whole.num_documents == 60
    known = documents_in(whole.__getitems__(list(range(len(whole)))))
    assert documents_in(some.__getitems__(list(range(7)))).items() <= known.items()
    assert len({whole.fingerprint, some.fingerprint, make(tmp_path, documents, "padded").fingerprint}) == 3


def test_text_gives_documents_of_its_splits(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"{n} alpha beta" + " gamma" * (n % 30) for n in range(200)))
    settings = {"path": path, "vocab_size": 200, "sequence_length": 16, "held_out": 0.1, "cache_dir": tmp_path}
    joined = Text(**settings).load(progress=False)
    loaded = Text(**settings, documents="apart").load(progress=False)
    for one, other in ((joined.train, loaded.train), (joined.held_out, loaded.held_out)):
        stream = np.fromfile(one.stream.path, one.stream.dtype)
        batch = other.__getitems__(list(range(len(other))))
        ordinary = sorted(batch["tokens"][batch["tokens"] > loaded.tokenizer.mask].tolist())
        assert ordinary == sorted(stream[stream > loaded.tokenizer.mask].tolist())
    with pytest.raises(DataError, match=r"data\.documents=alone: must be one of joined, apart, padded"):
        Text(documents="alone")  # type: ignore[arg-type]


def test_pieces_are_of_the_document_that_they_were_cut_from(tmp_path):
    documents = [[10, 11], list(range(20, 34)), [], [40, 41, 42]]
    made = make(tmp_path, documents, form="padded")
    numbers = np.arange(made.num_documents)
    found = made.document_of(numbers, np.zeros((len(numbers), 2), np.int64))
    tokens = [[t for t in made[int(n)]["tokens"].tolist() if t not in (START, END, PAD)] for n in numbers]
    expected = [next(i for i, document in enumerate(documents) if {*piece} <= {*document}) for piece in tokens]
    assert found.tolist() == [[number, number] for number in expected] and len(numbers) > 3
