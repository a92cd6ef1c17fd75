"""Text: the split, the cache, the windows, and every source of documents."""

import errno
import json
import multiprocessing
import os
import pickle
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from trainkit.data import Text, progress
from trainkit.data.corpus import documentation, find_corpus
from trainkit.data.split import DROPPED, HELD_OUT, TRAIN, split_documents
from trainkit.data.text_files import content_of
from trainkit.data.tokenizer import WordPiece, train_vocabulary
from trainkit.data.vocabulary import SPECIAL_TOKENS, Normalizer
from trainkit.errors import DataError

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu"]


def make_documents(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [f"{number} " + " ".join(draw.choices(WORDS, k=draw.randint(5, 40))) for number in range(count)]


def write_text(path: Path, documents: list[str]) -> Path:
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


def small(path: Path, tmp_path: Path, **settings: Any) -> Text:
    return Text(path=path, vocab_size=200, sequence_length=16, held_out=0.1, cache_dir=tmp_path / "cache", **settings)


def texts(path: Path, field: str = "text") -> list[str]:
    return [text for _, text in find_corpus(path, field).documents()]


def stream_of(dataset) -> np.ndarray:
    return np.fromfile(dataset.stream.path, dataset.stream.dtype)


def documents_of(dataset, tokenizer: WordPiece) -> list[str]:
    """The documents in a stream, as text."""
    stream = stream_of(dataset)
    ends = np.flatnonzero(stream == tokenizer.end)
    return [tokenizer.decode(part[part != tokenizer.end].tolist()) for part in np.split(stream, ends + 1)[:-1]]


# -- sources -----------------------------------------------------------------------------------------------------------


def test_every_format_gives_the_same_documents(tmp_path):
    documents = make_documents(30)
    txt = write_text(tmp_path / "a.txt", documents)
    rows = tmp_path / "a.jsonl"
    rows.write_text("\n".join(json.dumps({"text": text, "n": 1}) for text in documents))
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"n": [1] * 30, "text": documents}), table)
    assert texts(txt) == texts(rows) == texts(table) == documents


def test_a_folder_is_read_at_any_depth_in_the_order_of_names(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    write_text(tmp_path / "b" / "deep" / "z.txt", ["three"])
    write_text(tmp_path / "b" / "a.txt", ["two"])
    write_text(tmp_path / "a.txt", ["one"])
    write_text(tmp_path / ".git" / "hidden.txt", ["no"])
    (tmp_path / "photo.png").write_bytes(b"no")
    assert texts(tmp_path) == ["one", "two", "three"]
    assert [path.name for path in find_corpus(tmp_path).unread] == ["photo.png"]


def test_hugging_face_directories_are_read_as_by_their_library(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the datasets library is the oracle")
    train, test = make_documents(50), make_documents(20, seed=1)
    whole = datasets.Dataset.from_dict({"text": train, "label": list(range(50))}).shuffle(seed=3)
    whole.save_to_disk(tmp_path / "one", num_shards=3)
    datasets.DatasetDict(train=whole, test=datasets.Dataset.from_dict({"text": test})).save_to_disk(tmp_path / "dict")

    assert texts(tmp_path / "one") == datasets.load_from_disk(tmp_path / "one")["text"][:]
    both = list(find_corpus(tmp_path / "dict").documents())
    assert [text for is_held_out, text in both if is_held_out] == test
    assert [text for is_held_out, text in both if not is_held_out] == whole["text"][:]

    loaded = small(tmp_path / "dict", tmp_path).load()
    assert documents_of(loaded.held_out, loaded.tokenizer) == test


def test_paragraphs_end_at_blank_lines_whatever_ends_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\nstill one\r\n\r\n \r\ntwo\nstill two\n\n\nthree".encode())
    assert texts(path) == ["one still one", "two still two", "three"]


def test_text_without_blank_lines_is_cut_and_nothing_is_lost(tmp_path):
    words = " ".join(make_documents(2000))
    one_line, many_lines = tmp_path / "one.txt", tmp_path / "many.txt"
    one_line.write_text(words)
    many_lines.write_text(words.replace(" ", "\n"))
    for path in (one_line, many_lines):
        pieces = texts(path)
        assert len(pieces) > 10
        assert max(map(len, pieces)) < 10_000
        assert " ".join(pieces).split() == words.split()


def test_characters_across_a_block_boundary_are_read_whole(tmp_path):
    path = tmp_path / "a.txt"
    text = "a" + "é" * (1 << 20)  # the boundary of the first mebibyte falls inside a character
    path.write_text(text, encoding="utf-8")
    assert "".join(texts(path)) == text


def test_the_built_in_corpus_is_prose_of_the_installed_packages():
    corpus = documentation()
    names = {path.name for path in corpus.train}
    assert {"topics.py", "_torch_docs.py", "argparse.py"} <= names
    pathlib = next(path for path in corpus.train if path.name in ("pathlib.py", "argparse.py"))
    found = [text for _, text in type(corpus)((pathlib,)).documents()]
    assert len(found) > 10
    assert all(len(text) >= 60 and ">>>" not in text for text in found)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_text_that_is_not_utf8_names_file_offset_and_command(tmp_path):
    path = tmp_path / "latin.txt"
    for before in (b"", b"a" * 5, b"x" * (1 << 20) + b"\n", ("é" * (1 << 19)).encode() + b"abc"):
        path.write_bytes(before + b"caf\xe9 au lait")
        with pytest.raises(DataError, match=rf"latin\.txt is not UTF-8.* 0xe9 at offset {len(before) + 3};.*iconv -f"):
            small(path, tmp_path).load()
    path.write_bytes("two bytes a character".encode("utf-16"))
    with pytest.raises(DataError, match="iconv -f UTF-16 "):
        small(path, tmp_path).load()
    assert not entries(tmp_path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path / "missing", r"data\.path=.*missing does not exist; set data\.path"),
        (lambda path: path, r"data\.path=.* is empty; put \.txt"),
        (lambda path: (path / "a.doc").write_text("x") and path, r"found 1 \.doc; it takes \.txt"),
        (lambda path: (path / "a.doc").write_text("x") and path / "a.doc", r"a\.doc is a \.doc file"),
    ],
)
def test_an_impossible_path_is_refused_before_reading(tmp_path, make, says):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match=says):
        Text(path=make(folder))


def test_a_wrong_field_is_named_with_the_nearest_one(tmp_path):
    rows, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    rows.write_text(json.dumps({"texts": "a b"}))
    pyarrow.parquet.write_table(pyarrow.table({"texts": ["a b"], "n": [1]}), table)
    for path in (rows, table):
        with pytest.raises(DataError, match=r"field 'text'.*'texts'.*data\.field=NAME\. Did you mean 'texts'"):
            texts(path)
        assert texts(path, field="texts") == ["a b"]
    with pytest.raises(DataError, match="holds int64, not text"):
        texts(table, field="n")
    rows.write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(DataError, match="line 2: not a JSON object"):
        texts(rows)


def test_settings_out_of_range_name_their_key():
    for setting in (
        {"sequence_length": 2},
        {"vocab_size": 9},
        {"held_out": 0.0},
        {"held_out_samples": 0},
        {"num_workers": 0},
        {"vocab_file": Path("no.txt")},
    ):
        with pytest.raises(DataError, match=rf"data\.{next(iter(setting))}="):
            Text(**setting)


def test_too_little_text_says_so(tmp_path):
    with pytest.raises(DataError, match="holds 1 different documents"):
        small(write_text(tmp_path / "a.txt", ["same", "same"]), tmp_path).load()


# -- the split ---------------------------------------------------------------------------------------------------------


def test_the_split_follows_the_text_not_its_place():
    documents = make_documents(2000)
    split = split_documents([(False, text) for text in documents], 0.1, 1 << 30)
    held_out = {text for text, side in zip(documents, split.side, strict=True) if side == HELD_OUT}
    assert 150 < len(held_out) < 250

    shuffled = documents + make_documents(500, seed=9)
    random.Random(1).shuffle(shuffled)
    again = split_documents([(False, "  ".join(text.split())) for text in shuffled], 0.1, 1 << 30)
    held_out_again = {text for text, side in zip(shuffled, again.side, strict=True) if side == HELD_OUT}
    assert held_out <= held_out_again
    assert (held_out_again & set(documents)) == held_out


def test_duplicates_are_dropped_and_never_on_both_sides():
    documents = make_documents(300)
    repeated = documents + [text.replace(" ", "\n ") for text in documents[::-1]]
    split = split_documents([(False, text) for text in repeated], 0.1, 1 << 30)
    assert (split.side[:300] != DROPPED).all()
    assert (split.side[300:] == DROPPED).all()


def test_an_own_split_is_kept_without_its_copies_in_training():
    documents = [(True, "a"), (True, "b"), (False, "b"), (False, "c"), (False, "c")]
    assert split_documents(documents, 0.1, 1 << 30).side.tolist() == [HELD_OUT, HELD_OUT, DROPPED, TRAIN, DROPPED]


def test_a_small_corpus_has_a_document_on_either_side():
    for count in range(2, 20):
        side = split_documents([(False, text) for text in make_documents(count)], 0.02, 1 << 30).side
        assert {TRAIN, HELD_OUT} <= set(side.tolist())


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_a_trained_vocabulary_is_the_same_in_every_process():
    documents = [text for path in documentation().train[:40] for _, text in find_documents(path)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        theirs = pool.apply(train_vocabulary, (documents, 600, Normalizer()))
    ours = train_vocabulary(documents, 600, Normalizer())
    assert ours == theirs
    assert len(ours) == 600
    assert [ours[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


def find_documents(path: Path):
    return type(documentation())((path,)).documents()


def test_a_given_vocabulary_splits_as_transformers_does(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the transformers library is the oracle")
    vocabulary = [*SPECIAL_TOKENS, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary += ["the", "##ing", "re", "##turn", ".", ",", "!", "un", "##able"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(vocabulary))
    documents = ["The café is returning, unable!", "the [MASK] éa 漢", *make_documents(20)]
    loaded = Text(path=write_text(tmp_path / "a.txt", documents), vocab_file=path, cache_dir=tmp_path / "cache").load()
    oracle = transformers.BertTokenizerFast(vocab=str(path), vocab_file=str(path))
    for text in documents:
        assert loaded.tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False)


def test_a_vocabulary_without_the_special_tokens_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\na\nb\n")
    path = write_text(tmp_path / "a.txt", make_documents(10))
    with pytest.raises(DataError, match=r"data\.vocab_file=.* lacks \[UNK\], \[CLS\]"):
        small(path, tmp_path, vocab_file=tmp_path / "vocab.txt").load()


def test_windows_hold_every_token_of_a_document_once(tmp_path):
    documents = make_documents(200)
    loaded = small(write_text(tmp_path / "a.txt", documents), tmp_path).load()
    tokenizer = loaded.tokenizer
    for dataset, is_last_dropped in ((loaded.train, True), (loaded.held_out, False)):
        windows = dataset.__getitems__(list(range(len(dataset))))["tokens"]
        assert windows.dtype == torch.int64
        assert (windows[:, 0] == tokenizer.start).all()
        packed = windows[:, 1:].flatten().numpy()
        stream = stream_of(dataset)
        assert (packed[packed != tokenizer.pad] == stream[: len(packed)]).all()
        assert len(stream) - (packed != tokenizer.pad).sum() in (range(15) if is_last_dropped else (0,))
        assert (windows == torch.stack([dataset[index]["tokens"] for index in range(len(dataset))])).all()
    found = documents_of(loaded.train, tokenizer) + documents_of(loaded.held_out, tokenizer)
    assert sorted(found) == sorted(documents)
    assert (tokenizer.pad in loaded.held_out[-1]["tokens"]) == loaded.held_out.is_padded
    with pytest.raises(IndexError):
        loaded.train[len(loaded.train)]


def test_the_held_out_sample_is_an_even_choice_of_its_size(tmp_path):
    path = write_text(tmp_path / "a.txt", make_documents(600))
    whole, some = (small(path, tmp_path, held_out_samples=most).load() for most in (None, 20))
    assert len(some.held_out) == 20 < len(whole.held_out) // 2
    windows = {tuple(window["tokens"].tolist()): number for number, window in enumerate(whole.held_out[:])}
    chosen = [windows[tuple(window["tokens"].tolist())] for window in some.held_out[:]]
    assert chosen == sorted(set(chosen))
    assert chosen[0] < len(whole.held_out) // 4 and chosen[-1] > len(whole.held_out) // 2  # not the first ones
    assert (stream_of(some.train) == stream_of(whole.train)).all()
    enough = small(path, tmp_path, held_out_samples=len(whole.held_out)).load()
    assert len(enough.held_out) == len(whole.held_out) and enough.held_out.is_padded == whole.held_out.is_padded
    last = len(whole.held_out) - 1
    assert some.held_out.is_padded == (last in chosen and whole.held_out.is_padded)


def test_what_the_data_are_is_logged(tmp_path, capsys):
    documents = make_documents(100)
    write_text(tmp_path / "in.txt", [*documents, *documents[:7]])
    (tmp_path / "photo.HEIC").write_bytes(b"")
    loaded = small(tmp_path, tmp_path).load()
    facts: Mapping[str, Any] = loaded.describe()
    assert facts["documents"] + facts["held-out documents"] == 100
    assert facts["duplicates dropped"] == 7
    assert facts["tokens"] == len(stream_of(loaded.train)) and facts["held-out tokens"] == len(
        stream_of(loaded.held_out)
    )
    assert (facts["training samples"], facts["held-out samples"]) == (len(loaded.train), len(loaded.held_out))
    told = capsys.readouterr().err
    assert "trainkit: files not read: 1 .heic" in told
    assert f"{len(loaded.held_out)} held-out samples are too few to measure well" in told


def test_work_without_parts_is_announced_once_it_takes_a_while(capsys, monkeypatch):
    with progress.announced("short"):
        pass
    monkeypatch.setattr(progress, "PATIENCE_S", 0.01)
    with progress.announced("silent", enabled=False), progress.announced("long"):
        time.sleep(0.5)
    assert capsys.readouterr().err == "trainkit: long ...\n"


def test_a_data_set_pickles_to_its_path(tmp_path):
    train = small(write_text(tmp_path / "a.txt", make_documents(100)), tmp_path).load().train
    first = train[0]["tokens"]
    pickled = pickle.dumps(train)
    assert len(pickled) < 1000
    assert (pickle.loads(pickled)[0]["tokens"] == first).all()


# -- the cache ---------------------------------------------------------------------------------------------------------


def entries(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").glob("text-*"))


def test_the_cache_is_found_by_content(tmp_path):
    documents = make_documents(100)
    first = write_text(tmp_path / "a.txt", documents)
    small(first, tmp_path).load()
    (built,) = entries(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / built).iterdir()}

    first.rename(tmp_path / "b.txt")
    longer = Text(path=tmp_path / "b.txt", vocab_size=200, held_out=0.1, cache_dir=tmp_path / "cache")
    assert longer.load().train.stream.path.parent.name == built  # neither the name nor the length of a window counts
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / built).iterdir()}

    write_text(tmp_path / "b.txt", [*documents[:-1], documents[-1] + "!"])
    small(tmp_path / "b.txt", tmp_path).load()
    small(tmp_path / "b.txt", tmp_path, lowercase=False).load()
    assert len(entries(tmp_path)) == 3


def test_text_is_read_again_where_its_files_may_have_changed(tmp_path, monkeypatch):
    documents = make_documents(100)
    path = write_text(tmp_path / "a.txt", documents)
    digest, read = content_of, []

    def noted(file):
        read.append(file)
        return digest(file)

    monkeypatch.setattr("trainkit.data.corpus.content_of", noted)
    before = small(path, tmp_path).load().fingerprints()
    assert small(path, tmp_path).load().fingerprints() == before and read == [path]
    times = path.stat()
    write_text(path, [documents[0].swapcase(), *documents[1:]])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size  # ctime alone shows the change
    assert small(path, tmp_path).load().fingerprints() != before and read == [path, path]


def test_a_complete_cache_that_cannot_be_written_is_used(tmp_path, monkeypatch):
    path = write_text(tmp_path / "a.txt", make_documents(100))
    before = small(path, tmp_path).load().fingerprints()
    os.utime(path)  # an unknown state of the files, as on another machine

    def refuse(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("trainkit.cache._claim", refuse)
    assert small(path, tmp_path).load().fingerprints() == before


def _load(path: Path, tmp_path: Path, barrier) -> bytes:
    barrier.wait()
    loaded = small(path, tmp_path).load()
    return stream_of(loaded.train).tobytes() + loaded.tokenizer.fingerprint.encode()


def test_two_processes_race_to_the_same_tokens(tmp_path):
    path = write_text(tmp_path / "a.txt", make_documents(3000))
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        arguments = (path, tmp_path, manager.Barrier(2))
        first, second = pool.starmap(_load, [arguments, arguments])
    assert first == second
    assert len(entries(tmp_path)) == 1


def test_a_cache_that_cannot_be_written_names_its_key(tmp_path):
    path = write_text(tmp_path / "a.txt", make_documents(10))
    with pytest.raises(DataError, match=r"cache directory .* cannot be written .*data\.cache_dir"):
        Text(path=path, cache_dir=path / "below-a-file").load()
