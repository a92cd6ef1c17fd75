"""Labelled examples: the same from every format, and split by what the source says or by their text."""

import gzip
import json

import pytest

from trainkit.data import Examples, WordPiece
from trainkit.errors import DataError

ROWS = [{"text": f"text, {n}", "other": f"pair {n}", "label": "ab"[n % 2]} for n in range(20)]


def content(examples):
    return [(e.text, e.pair, e.label) for e in examples]


def write(folder, suffix, rows=ROWS, name="a"):
    path = folder / f"{name}{suffix}"
    if "csv" in suffix or "tsv" in suffix:
        mark = "," if "csv" in suffix else "\t"
        lines = ["text,other,label".replace(",", mark)]
        lines += [mark.join(f'"{row[key]}"' for key in ("text", "other", "label")) for row in rows]
        text = "\n".join(lines) + "\n"
    else:
        text = "\n".join(map(json.dumps, rows))
    if suffix.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet"])
def test_every_format_gives_the_same_examples(tmp_path, suffix):
    loaded = Examples(path=write(tmp_path, suffix), pair="other", held_out=0.3).load()
    both = sorted(content(loaded.train) + content(loaded.held_out))
    assert both == sorted((row["text"], row["other"], row["label"]) for row in ROWS)
    expected = Examples(path=write(tmp_path, ".jsonl", name="b"), pair="other", held_out=0.3).load()
    assert content(loaded.held_out) == content(expected.held_out) and loaded.held_out
    assert loaded.held_out[0].where.startswith(f"{tmp_path}/a{suffix}, ")


def test_a_saved_data_set_keeps_its_split_and_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-X"])),
        }
    )
    rows = {"text": ["one", "two"], "label": [1, 0], "tags": [[0], [1]]}
    splits = {name: datasets.Dataset.from_dict(rows, features=features) for name in ("train", "validation", "test")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    loaded = Examples(path=tmp_path / "set").load()
    assert [e.label for e in loaded.train] == [e.label for e in loaded.held_out] == ["good", "bad"]
    assert loaded.facts == {"held-out texts that are also trained on": 2}
    assert Examples(path=tmp_path / "set", label="tags").load().train[1].label == ["B-X"]


def test_a_folder_and_a_column_say_what_is_held_out(tmp_path):
    folder = tmp_path / "glue"
    folder.mkdir()
    write(folder, ".tsv", ROWS[:5], "train")
    write(folder, ".tsv", ROWS[5:8], "dev")
    write(folder, ".tsv", ROWS[8:], "test")
    loaded = Examples(path=folder).load()
    assert (len(loaded.train), len(loaded.held_out)) == (5, 3)
    rows = [{**row, "part": "train" if n < 15 else "Test"} for n, row in enumerate(ROWS)]
    loaded = Examples(path=write(tmp_path, ".jsonl", rows, "parts"), split="part").load()
    assert (len(loaded.train), len(loaded.held_out)) == (15, 5)


def test_names_of_the_held_out_file(tmp_path):
    for name in ("valid", "val", "held_out"):
        folder = tmp_path / name
        folder.mkdir()
        write(folder, ".csv", ROWS[:12], "train")
        write(folder, ".csv", ROWS[12:], name)
        assert len(Examples(path=folder).load().held_out) == 8
    write(folder, ".jsonl", ROWS[:12], "train")
    with pytest.raises(DataError, match=r"2 files named train, train\.csv and train\.jsonl: set data\.path"):
        Examples(path=folder).load()


def test_two_ways_to_say_what_is_held_out_are_refused(tmp_path):
    path = write(tmp_path, ".csv")
    with pytest.raises(DataError, match=r"data\.held_out_path=.* and data\.split=other both say what is held out"):
        Examples(path=path, held_out_path=path, split="other")


def test_more_examples_move_none_to_the_other_side(tmp_path):
    few = Examples(path=write(tmp_path, ".jsonl", ROWS[:12]), held_out=0.3).load()
    more = Examples(path=write(tmp_path, ".jsonl", ROWS + ROWS[:3], "more"), held_out=0.3).load()
    assert set(content(few.held_out)) <= set(content(more.held_out))
    assert not set(content(more.train)) & set(content(more.held_out))


def test_quotes_may_be_part_of_the_text(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"fine\t0\nit "is"\t1\n')
    loaded = Examples(path=tmp_path / "a.tsv", quotes=False, held_out=0.5).load()
    assert sorted(e.text for e in (*loaded.train, *loaded.held_out)) == ['"fine', 'it "is"']


def test_sentences_and_questions(tmp_path):
    (tmp_path / "a.conll").write_text("-DOCSTART- -X- O\n\nAnna NNP B-PER\nran VB O\n\nParis NNP B-LOC\n")
    loaded = Examples(path=tmp_path / "a.conll", held_out=0.5).load()
    words = [(e.text, e.label) for e in (*loaded.train, *loaded.held_out)]
    assert sorted(words) == [(["Anna", "ran"], ["B-PER", "O"]), (["Paris"], ["B-LOC"])]
    asked = [
        {"id": 1, "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]},
        {"id": 2, "question": "Why?", "is_impossible": True, "answers": [], "plausible_answers": []},
    ]
    context = {"context": "Ann ran.", "qas": asked}
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"paragraphs": [context]}]}))
    read = Examples(path=tmp_path / "a.json").read(tmp_path / "a.json")
    assert content(read) == [("Who?", "Ann ran.", [("Ann", 0)]), ("Why?", "Ann ran.", [])]


def test_characters_of_tokens():
    tokenizer = WordPiece.learn(["anna and anton ran"] * 3, 60)
    ((numbers, spans),) = tokenizer.encode_with_spans(["Anna  RAN"])
    assert numbers == tokenizer.encode("Anna  RAN")
    assert "".join("Anna  RAN"[start:end] for start, end in spans) == "AnnaRAN"
