"""NVIDIA's HDF5 files: every sample as plain h5py and numpy read it, and what is wrong with a file in one line."""

import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.nvidia_files import MASK, PAD, arrays, write, write_folder, write_vocabulary
from trainkit import Runtime
from trainkit.data import NvidiaBert, WordPiece
from trainkit.data.fingerprint import fingerprint
from trainkit.errors import DataError
from trainkit.testing import run_ranks


@pytest.fixture
def vocab(tmp_path) -> Path:
    return write_vocabulary(tmp_path / "vocab.txt")


def spec(path: Path | None, vocab: Path | None, **settings) -> NvidiaBert:
    settings = {"cache_dir": (vocab or path or Path()).parent / "cache", **settings}
    return NvidiaBert(path=path, vocab_file=vocab, **settings)


def plain(files: list[Path]) -> list[dict[str, np.ndarray]]:
    """The samples of files as the example's own data set reads them: one by one, up to the first position 0."""
    read = []
    for path in files:
        with h5py.File(path) as file:
            columns = {name: file[name][:] for name in file}
        for row in range(len(columns["input_ids"])):
            tokens = columns["input_ids"][row].astype(np.int64)
            positions, ids = columns["masked_lm_positions"][row], columns["masked_lm_ids"][row]
            num = next((n for n, position in enumerate(positions) if position == 0), len(positions))
            labels = np.full(len(tokens), -1)
            labels[positions[:num]] = ids[:num]
            read.append(
                {
                    "masked": tokens,
                    "tokens": np.where(labels >= 0, labels, tokens),
                    "labels": labels,
                    "segments": columns["segment_ids"][row].astype(np.int64),
                    "next_sentence_label": np.int64(columns["next_sentence_labels"][row]),
                }
            )
    return read


@pytest.mark.parametrize("compression", ["gzip", None])
def test_samples_are_those_that_h5py_reads(tmp_path, vocab, compression):
    files = [write(tmp_path / f"x/{n}_training.hdf5", arrays(700 + n, seed=n), compression) for n in range(2)]
    write(tmp_path / "x/a_test.hdf5", arrays(80, seed=5), compression)
    datasets = spec(tmp_path / "x", vocab, static_masking=True).load()
    train, expected = datasets.train, plain(files)
    assert len(train) == len(expected) == 1401 and len(datasets.held_out) == 80
    order = np.random.default_rng(0).permutation(len(expected)).tolist()
    batch = train.__getitems__(order)
    for name in ("tokens", "segments", "next_sentence_label"):
        assert torch.equal(batch[name], torch.from_numpy(np.stack([expected[i][name] for i in order]))), name
    seen = batch["tokens"].scatter(1, batch["masked_positions"], batch["masked_inputs"])
    assert torch.equal(seen, torch.from_numpy(np.stack([expected[i]["masked"] for i in order])))
    labels = torch.full_like(seen, -1)
    for row, (places, values) in enumerate(zip(batch["masked_positions"], batch["masked_labels"], strict=True)):
        labels[row, places[values != -100]] = values[values != -100]
    assert torch.equal(labels, torch.from_numpy(np.stack([expected[i]["labels"] for i in order])))
    assert not (batch["tokens"] == MASK).any() and (batch["tokens"] == PAD).any() and train.is_padded
    one = pickle.loads(pickle.dumps(train))[1400]
    assert all(torch.equal(one[name], train[1400][name]) for name in one), "for loader workers"
    assert set(spec(tmp_path / "x", vocab).load().train[0]) == {"tokens", "segments", "next_sentence_label"}


def read_epoch(path: Path, vocab: Path) -> list[list[int]]:
    runtime = Runtime(seed=1, device="cpu", tracker=None)
    datasets = runtime.ranks.first_on_host(spec(path, vocab).load)
    rows = []
    for batch in runtime.batches(datasets.train, batch_size=8, num_steps=20):
        rows += [
            [position, *tokens]
            for position, tokens in zip(batch.positions.tolist(), batch.tokens.tolist(), strict=True)
        ]
    runtime.close()
    return rows


def test_the_order_does_not_depend_on_ranks(tmp_path, vocab):
    folder = write_folder(tmp_path / "data")
    alone = read_epoch(folder, vocab)
    both = run_ranks(partial(read_epoch, folder, vocab), 2)
    assert sorted(both[0] + both[1]) == alone and not {row[0] for row in both[0]} & {row[0] for row in both[1]}
    expected = {tuple(sample["tokens"]) for sample in plain(sorted(folder.glob("*training*")))}
    assert {tuple(row[1:]) for row in alone[:153]} == expected, "an epoch is every sample once"


def test_what_is_held_out(tmp_path, vocab):
    folder = write_folder(tmp_path / "data", num=8, samples=20)
    by_name = spec(folder, vocab).load()
    assert (len(by_name.train), len(by_name.held_out)) == (8 * 20 + 28, 20)
    assert by_name.facts["files"] == 8 and "too few" in str(by_name.facts["note"])
    (folder / "books_wiki_en_corpus_test_0.hdf5").rename(tmp_path / "own.hdf5")
    own = spec(folder, vocab, held_out_path=tmp_path / "own.hdf5").load()
    assert [own.fingerprints()[side] == by_name.fingerprints()[side] for side in own.fingerprints()] == [True, True]
    by_hash = spec(folder, vocab, held_out=0.3).load()
    assert len(by_hash.train) + len(by_hash.held_out) == len(by_name.train)
    assert by_hash.facts["held-out files"] in (1, 2, 3, 4)
    (tmp_path / "data" / "more").mkdir()
    (folder / "books_wiki_en_corpus_training_0.hdf5").rename(
        tmp_path / "data/more/books_wiki_en_corpus_training_0.hdf5"
    )
    moved = spec(tmp_path / "data", vocab, held_out=0.3).load()
    assert len(moved.held_out) == len(by_hash.held_out), "by the names of files, wherever they are"
    assert len(spec(folder, vocab, held_out_samples=5, held_out=0.3).load().held_out) == 5


def test_files_of_two_lengths(tmp_path, vocab):
    write_folder(tmp_path / "data", length=16), write_folder(tmp_path / "data", num=2, length=32, slots=6)
    short, long = spec(tmp_path / "data", vocab).load_lengths([16, 32])
    assert (short.train.sequence_length, len(short.train)) == (16, 153)
    assert (long.train.sequence_length, len(long.train)) == (32, 101)
    assert long.train[0]["tokens"].shape == (32,)
    chosen = spec(tmp_path / "data", vocab, sequence_length=32).load()
    assert chosen.fingerprints() == long.fingerprints() != short.fingerprints()


def test_the_cache_needs_no_h5py_and_changes_are_read(tmp_path, vocab, monkeypatch):
    folder = write_folder(tmp_path / "data")
    first = spec(folder, vocab).load()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "h5py", None)
        assert spec(folder, vocab).load().fingerprints() == first.fingerprints()
        with pytest.raises(DataError, match=r"h5py, which is missing: pip install 'trainkit\[hdf5\]'$"):
            spec(folder, vocab, cache_dir=tmp_path / "empty").load()
    assert spec(folder, vocab, cache_dir=tmp_path / "other").load().fingerprints() == first.fingerprints()
    write(folder / "books_wiki_en_corpus_training_1.hdf5", arrays(51, seed=77))
    changed = spec(folder, vocab).load()
    assert fingerprint(changed.train) != fingerprint(first.train)
    assert fingerprint(changed.held_out) == fingerprint(first.held_out)


def changed(name: str, change) -> dict[str, np.ndarray]:
    made = arrays(9)
    return {**made, name: change(made[name].copy())}


def put(value: int, row: int, column: int):
    def change(values: np.ndarray) -> np.ndarray:
        values[row, column] = value
        return values

    return change


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({k: v for k, v in arrays(9).items() if k != "segment_ids"}, "no dataset 'segment_ids', found input_ids,"),
        (
            changed("segment_ids", lambda v: v[:-1]),
            r"segment_ids has the shape \[8, 16\], where input_ids need \[9, 16\]",
        ),
        (changed("next_sentence_labels", lambda v: v[:4]), r"next_sentence_labels has the shape \[4\]"),
        (changed("masked_lm_positions", lambda v: v[:, :1]), r"masked_lm_positions has the shape \[9, 1\]"),
        (changed("input_ids", lambda v: v[0]), "must have a row for each sample"),
        (changed("input_ids", put(40, 3, 2)), "has token 40, and data.vocab_file=.*has 40 tokens"),
        (changed("input_ids", put(70_000, 3, 2)), "has token 70000"),
        (changed("masked_lm_ids", put(-1, 3, 0)), "token numbers are below 0"),
        (changed("input_ids", put(9, 0, 0)), r"begins with token 9, and data.vocab_file=.*\[CLS\] = 2"),
        (changed("input_mask", put(0, 4, 1)), "input_mask has ones after a zero"),
        (changed("input_mask", lambda v: v * 0), "input_mask is zero in a whole sample"),
        (changed("segment_ids", put(1, 2, 0)), "segment_ids are not zeros, then ones"),
        (changed("masked_lm_positions", put(16, 2, 0)), "masked_lm_positions are outside their sample"),
        (arrays(0), "the files to train on have no sample"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(tmp_path, vocab, made, message):
    write(tmp_path / "x/a_training.hdf5", made, compression="gzip" if len(made["input_ids"]) else None)
    write(tmp_path / "x/a_test.hdf5", arrays(9))
    with pytest.raises(DataError, match=message) as raised:
        spec(tmp_path / "x", vocab).load()
    assert "\n" not in str(raised.value) and "data." in str(raised.value)
    assert not [path for path in (tmp_path / "cache").glob(".*")], "nothing half-made stays"


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, vocab):
    path = write(tmp_path / "x/a_training.hdf5", arrays(3000))
    write(tmp_path / "x/a_test.hdf5", arrays(9))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a_training.hdf5 cannot be read as HDF5, or is incomplete \(.*truncated"):
        spec(tmp_path / "x", vocab).load()
    path.write_bytes(whole[:5000] + b"\0" * (len(whole) - 10_000) + whole[-5000:])  # a hole within
    with pytest.raises(DataError, match=r"a_training.hdf5 cannot be read as HDF5, or is incomplete"):
        spec(tmp_path / "x", vocab).load()
    path.write_text("text")
    with pytest.raises(DataError, match=r"a_training.hdf5 cannot be read as HDF5") as raised:
        spec(tmp_path / "x", vocab).load()
    assert "\n" not in str(raised.value)


def test_settings_that_do_not_match_are_refused(tmp_path, vocab):
    folder = write_folder(tmp_path / "data")
    other = write_folder(tmp_path / "data", length=32, slots=6)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"path": tmp_path / "none"}, "data.path=.*none does not exist"),
        ({"path": vocab.parent / "vocab.txt"}, "vocab.txt cannot be read as HDF5"),
        ({"vocab": None}, "data.vocab_file is not set"),
        ({"vocab": tmp_path / "no.txt"}, "data.vocab_file=.*must be a vocab.txt that exists"),
        ({"path": tmp_path / "data"}, r"several lengths \(4 of 16 tokens, 3 of 32 tokens\): set data.sequence_length|"
                                      r"several lengths \(3 of 16 tokens, 3 of 32 tokens\): set data.sequence_length"),
        ({"sequence_length": 64}, r"no file with samples of 64 tokens, but 3 of 16 tokens: set data.sequence"),
        ({"held_out": 0.9}, "data.held_out=0.9"),
        ({"held_out_path": other}, "data.held_out_path=.*has no file of samples as long"),
        ({"held_out_path": folder / "books_wiki_en_corpus_training_0.hdf5"}, "which is also trained on"),
        ({"path": folder / "books_wiki_en_corpus_training_0.hdf5"}, "has one file, which is not divided"),
        ({"tokenizer": WordPiece.learn(["alpha beta"] * 9, 100)}, "is not the vocabulary of the checkpoint"),
    ]  # fmt: skip
    for settings, message in cases:
        given = {"path": folder, "vocab": vocab, **settings}
        with pytest.raises(DataError, match=message):
            spec(given.pop("path"), given.pop("vocab"), cache_dir=tmp_path / "cache", **given).load()
    write(folder / "b_training.hdf5", arrays(9, slots=5))
    with pytest.raises(DataError, match=r"5 masked_lm_positions in a sample, and .* 3: set data.path"):
        spec(folder, vocab).load()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    with pytest.raises(DataError, match=r"pictures has no .hdf5 or .h5 file, but 1 .png"):
        spec(tmp_path / "pictures", vocab)
