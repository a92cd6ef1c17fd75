"""`trainkit data audit`: what it prints and writes, its exit codes, and one line for each thing that is wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from trainkit.cli.main import main

TEXTS = [f"This sentence about the number {number} has twelve words {number} of some length." for number in range(30)]


def table(path, texts, **columns):
    rows = [{"text": text, **{name: values[i] for name, values in columns.items()}} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def leaking(tmp_path):
    near = "Quite another text whose words nobody else would put into that very order here today."
    train = table(tmp_path / "train.jsonl", [*TEXTS, near], user=[*range(31)])
    held_out = table(
        tmp_path / "test.jsonl", ["The only clean one", TEXTS[3], near.replace("nobody", "NOBODY-X")], user=[99, 3, 98]
    )
    return train, held_out


def test_leaks_are_counted_shown_and_written(leaking, tmp_path, capsys):
    assert main(["data", "audit", *leaking, "--group-by", "user", "--json", str(tmp_path / "leaks.json")]) == 1
    out = capsys.readouterr().out
    assert "[-nobody-]" in out and "{+NOBODY-X+}" in out and "train.jsonl, line 4  |  test.jsonl, line 2" in out
    assert "groups on both sides" in out
    assert out.splitlines()[-1].startswith("next: trainkit train recipe=bert_finetune data.path=")
    assert out.splitlines()[-1].endswith("data.group_by=user on_leak=drop")
    written = json.loads((tmp_path / "leaks.json").read_text())
    assert written["held_out"]["exact"] == 1 and written["held_out_affected"] == 2 and written["complete"]
    assert {pair["kind"] for pair in written["pairs"]} == {"exact", "near", "group"}


def test_nothing_found_is_success(tmp_path, capsys):
    train = table(tmp_path / "train.jsonl", TEXTS[:2])
    held_out = table(tmp_path / "test.jsonl", ["Something else"])
    assert main(["data", "audit", train, held_out]) == 0
    assert "none of 1 held-out examples leaks; compared with all 2 training examples" in capsys.readouterr().out


def test_pictures_and_broken_files(tmp_path, capsys):
    draw = np.random.default_rng(0)
    for side, seeds in (("a", (1, 2)), ("b", (2, 3))):
        (tmp_path / side).mkdir()
        for seed in seeds:
            blocks = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(blocks).resize((80, 80)).save(tmp_path / side / f"{seed}.png")
        (tmp_path / side / "broken.png").write_bytes(draw.bytes(50))
    sheet = tmp_path / "pairs.png"
    assert main(["data", "audit", str(tmp_path / "a"), str(tmp_path / "b"), "--sheet", str(sheet)]) == 1
    out = capsys.readouterr().out
    assert "2.png  |  2.png" in out and "not read: broken.png" in out and sheet.is_file()
    assert out.splitlines()[-1].startswith("next: trainkit data audit")


def test_texts_in_folders_and_a_corpus(tmp_path, capsys):
    for side, texts in (("a", TEXTS[:5]), ("b", TEXTS[20:22]), ("corpus", TEXTS[19:22])):
        (tmp_path / side).mkdir()
        (tmp_path / side / "one.txt").write_text("\n\n".join(texts))
    paths = [str(tmp_path / side) for side in ("a", "b")]
    assert main(["data", "audit", *paths, "--corpus", str(tmp_path / "corpus")]) == 1
    assert "2 in the pre-training corpus" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--label", "labl"], "no column 'labl', found 'text', 'user'"),
        (["--group-by", "usr"], "set --group-by=NAME. Did you mean 'user'?"),
        (["--text", "txt"], "set --text=NAME. Did you mean 'text'?"),
        (["--time", "text"], "it must be a number, or a time as"),
        (["--content", "tabel"], "must be one of text, table, pictures. Did you mean 'table'?"),
        (["--content", "text", "--label", "user"], "is read as text, which has no columns"),
        (["--minutes", "0"], "--minutes=0.0: must be above 0"),
        (["--show", "-1"], "--show=-1: must be 0 or more"),
        (["--json", "/no/such/folder/x"], "must be a file in a folder that exists"),
        (["--corpus", "/no/such/corpus"], "does not exist"),
    ],
)
def test_what_is_wrong_is_one_line(leaking, capsys, options, says):
    assert main(["data", "audit", *leaking, *options]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_two_kinds_and_empty_files_are_refused(leaking, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    assert main(["data", "audit", leaking[0], str(tmp_path / "empty.txt")]) == 2
    assert main(["data", "audit", *[str(tmp_path / "empty.txt")] * 2]) == 2
    assert main(["data", "audit", leaking[0], str(tmp_path / "gone")]) == 2
    error = capsys.readouterr().err
    assert "as table and" in error and "holds nothing that can be read as text" in error and "does not exist" in error
