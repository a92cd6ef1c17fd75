"""`trainkit data select` of text: what each rule drops, beside sets, all pairs and models that are called directly."""

import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from tests.data.curate.corpora import FRENCH, GERMAN, changed, paragraphs, read_rows, similarity, write_rows
from tests.jobs import ROOT, environment
from trainkit.cli.main import main
from trainkit.data.curate.documents import SourceDocuments
from trainkit.data.curate.lines import lines_of
from trainkit.data.curate.rules import TextRules
from trainkit.data.curate.selection import between
from trainkit.data.curate.text_selection import select_text
from trainkit.data.minhash import FEWEST, required


@pytest.fixture(scope="module")
def texts():
    """Different paragraphs, some of them twice, some with a word changed, some in other languages, some boilerplate."""
    draw, own = random.Random(3), paragraphs(150)
    boilerplate = "Copyright the authors, who reserve all rights. Do not edit this page, it was generated."
    found = [
        *own,
        *own[:20],
        *(changed(text, draw) for text in own[20:40]),
        *GERMAN,
        *FRENCH,
        *(f"{boilerplate} Page {number}." for number in range(12)),
        "a broken \ufffd character in a text that is long enough",
        "tiny",
    ]
    draw.shuffle(found)
    return found


@pytest.fixture
def corpus(tmp_path, texts):
    half = len(texts) // 2
    write_rows(tmp_path / "texts" / "a.jsonl", texts[:half])
    (tmp_path / "texts" / "b.txt").write_text("\n\n".join(texts[half:]))
    return tmp_path / "texts"


def select(corpus, *rules, to="out"):
    target = corpus.parent / to
    assert main(["data", "select", str(corpus), "--to", str(target), *map(str, rules)]) == 0
    return [row["text"] for row in read_rows(target)], json.loads((target / "selection.json").read_text())


def refused(arguments, capsys):
    assert main(["data", "select", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if line.startswith("trainkit: error")]) == 1
    return lines[-1]


def test_exact_duplicates_are_those_of_a_set(corpus, texts):
    kept, selection = select(corpus, "--drop-exact")
    assert kept == [*dict.fromkeys(texts)]
    assert selection["before"]["documents"] == len(texts) and selection["steps"][0]["dropped"] == 20


def test_each_row_names_where_it_was(corpus, texts):
    select(corpus, "--min-chars", 1)
    read = {path.name: [*path.read_text().split("\n\n")] for path in corpus.glob("*.txt")}
    read["a.jsonl"] = [json.loads(line)["text"] for line in (corpus / "a.jsonl").read_text().splitlines()]
    rows = read_rows(corpus.parent / "out")
    assert len(rows) == len(texts)
    assert all(read[row["source"]][row["document"] - 1] == row["text"] for row in rows)


def test_near_duplicates_are_those_of_all_pairs(corpus, texts):
    kept, selection = select(corpus, "--drop-exact", "--drop-near")

    def is_near(one, other):
        jaccard, fewest = similarity(one, other)
        return fewest >= FEWEST and jaccard >= required(fewest) - 1e-9

    left = [*dict.fromkeys(texts)]
    dropped = [text for text in left if text not in kept]
    assert selection["steps"][1]["dropped"] == len(dropped) >= 20
    assert all(any(is_near(text, other) for other in kept) for text in dropped)
    pairs = sum(is_near(one, other) for place, one in enumerate(kept) for other in kept[:place])
    assert pairs <= 1, "the hashing may miss a pair in thousands"


def test_the_counts_add_up_and_the_order_stays(corpus, texts):
    rules = ["--drop-damaged", "--min-chars", 30, "--max-chars", 2000, "--drop-exact", "--drop-near"]
    rules += ["--max-boilerplate", 0.4, "--repeated-in", 5, "--languages", "en", "--diverse", 0.9]
    kept, selection = select(corpus, *rules)
    steps = selection["steps"]
    assert len(steps) == 8 and all(step["dropped"] > 0 for step in steps if "above 2" not in step["rule"])
    assert steps[0]["before"] == len(texts) and steps[-1]["after"] == len(kept) == selection["after"]["documents"]
    assert all(step["before"] - step["dropped"] == step["after"] for step in steps)
    assert all(one["after"] == other["before"] for one, other in pairwise(steps))
    assert selection["after"]["characters"] == sum(map(len, kept))
    places = [texts.index(text) for text in kept]
    assert places == sorted(places)


def test_the_same_is_the_same_byte_for_byte(corpus):
    before = {path: path.read_bytes() for path in corpus.rglob("*")}
    rules = ["--drop-exact", "--drop-near", "--max-boilerplate", "0.5", "--diverse", "0.7", "--compress"]
    for to, workers in (("one", "1"), ("two", "2")):
        select(corpus, *rules, "--num-workers", workers, to=to)
    first, second = ({p.name: p.read_bytes() for p in (corpus.parent / to).iterdir()} for to in ("one", "two"))
    assert first == second and {*first} == {"selection.json", "text-00000.jsonl.zst"}
    assert {path: path.read_bytes() for path in corpus.rglob("*")} == before
    documents = [document.text for document in SourceDocuments(corpus.parent / "one")]
    assert len(documents) == json.loads(first["selection.json"])["after"]["documents"]


def test_boilerplate_is_counted_in_different_documents(corpus, texts):
    kept, _ = select(corpus, "--max-boilerplate", 0.4, "--repeated-in", 6)
    counts = Counter(line for text in {*texts} for line in {*lines_of(text)})
    shares = [sum(len(line) for line in lines_of(text) if counts[line] >= 6) / len(text) for text in texts]
    assert kept == [text for text, share in zip(texts, shares, strict=True) if share <= 0.4]
    assert len(texts) - len(kept) >= 12


def test_languages_are_kept_and_others_dropped(corpus, texts):
    kept, _ = select(corpus, "--languages", "de,fr")
    assert {*GERMAN, *FRENCH} <= {*kept} and len(kept) <= len(GERMAN) + len(FRENCH) + 2


def test_a_dry_run_writes_nothing(corpus, capsys):
    before = {*corpus.parent.rglob("*")}
    assert main(["data", "select", str(corpus), "--drop-exact", "--dry-run"]) == 0
    assert {*corpus.parent.rglob("*")} == before
    assert re.search(r"exact duplicates +\d+ +20 +\d+", capsys.readouterr().out)


def test_files_are_divided_and_read_again(corpus, texts, tmp_path):
    write_rows(tmp_path / "long" / "a.jsonl", [f"{number} " + "x" * 400_000 for number in range(6)])
    kept, selection = select(tmp_path / "long", "--min-chars", 1, "--shard-mb", 1, to="parts")
    assert [(file["name"], file["documents"]) for file in selection["files"]] == [
        (f"text-{number:05d}.jsonl", 2) for number in range(3)
    ]
    assert [text.split()[0] for text in kept] == [*"012345"]


def test_a_function_keeps_or_scores(corpus, texts, tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(
        "def has_the(text): return ' the ' in text\ndef size(text): return len(text)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    kept, _ = select(corpus, "--function", "my_rules:has_the", "--trust")
    assert kept == [text for text in texts if " the " in text]
    kept, selection = select(
        corpus, "--function", "my_rules:size", "--score-between", 0.25, 0.75, "--trust", to="scored"
    )
    low, high = np.quantile([len(text) for text in texts], [0.25, 0.75])
    assert kept == [text for text in texts if low <= len(text) <= high]
    assert (selection["steps"][0]["low"], selection["steps"][0]["high"]) == (low, high)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("my_bad:fails", "failed on .*, document 1: ZeroDivisionError"),
        ("my_bad:nothing", "returned None for .*must be a bool or a finite number"),
        ("my_bad:size", "set --score-between"),
        ("my_bad:fials", "Did you mean 'fails'"),
        ("my_bad", "must be module:name"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("my_bad:number", "must be a function, and is int"),
    ],
)
def test_a_bad_function_is_one_line(corpus, function, says, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_bad.py").write_text(
        "number = 1\ndef fails(text): return 1 / 0\ndef nothing(text): pass\ndef size(text): return len(text)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    line = refused([corpus, "--to", tmp_path / "out", "--function", function, "--trust"], capsys)
    assert re.search(says, line) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no rule is given"),
        (["--min-chars", "0"], "--min-chars=0: must be 1 or more"),
        (["--min-chars", "9", "--max-chars", "3"], "--min-chars=9: must be --max-chars=3 or less"),
        (["--max-boilerplate", "1"], "--max-boilerplate=1.0: must be a share"),
        (["--repeated-in", "3"], "--repeated-in=3: has no effect"),
        (["--drop-exact", "--languages", "eng"], "--languages=eng: must be of .*"),
        (["--loss-of", "run"], "belong together"),
        (["--loss-of", "nowhere", "--loss-between", "0.1", "0.9"], "nowhere"),
        (["--loss-of", "run", "--loss-between", "0.9", "0.1"], "--loss-between=0.9 0.1: must be two quantiles"),
        (["--diverse", "1.5"], "--diverse=1.5: must be a share"),
        (["--drop-exact", "--score-between", "0", "1"], "has no effect without --function"),
        (["--drop-exact", "--features", "run"], "--features=run: has no effect"),
        (["--function", "json:loads"], "runs code of yours: type the same with --trust"),
        (["--drop-exact", "--kind", "txt"], "--kind=txt: must be text or images. Did you mean 'text'"),
        (["--drop-exact", "--min-side", "3"], "--min-side: is about images"),
        (["--drop-exact", "--on-unreadable", "drop"], "--on-unreadable=drop: must be error or skip"),
        (["--min-chars", "1000000"], "no document is left: below 1,000,000 characters dropped the last"),
        (["--drop-exact", "--field", "body"], "no text in field 'body'.*--field=NAME"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(corpus, arguments, says, tmp_path, capsys):
    before = {*tmp_path.rglob("*")}
    assert re.search(says, refused([corpus, "--to", tmp_path / "out", *arguments], capsys))
    assert {*tmp_path.rglob("*")} == before


def test_a_folder_that_holds_something_is_left_alone(corpus, capsys):
    assert "exists already" in refused([corpus, "--to", corpus.parent, "--drop-exact"], capsys)
    assert "must be beside" in refused([corpus, "--to", corpus / "out", "--drop-exact"], capsys)
    assert "--to DEST is missing" in refused([corpus, "--drop-exact"], capsys)


def test_binary_files_are_named(tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "bad.txt").write_bytes(np.random.default_rng(0).bytes(5000))
    line = refused([folder, "--to", tmp_path / "out", "--drop-exact"], capsys)
    assert "bad.txt is not UTF-8 text" in line and "--on-unreadable skip" in line
    line = refused([folder, "--to", tmp_path / "out", "--drop-exact", "--on-unreadable", "skip"], capsys)
    assert "holds no document that can be read" in line
    (folder / "good.txt").write_text("One paragraph.\n\nAnother one.\n")
    kept, selection = select(folder, "--drop-exact", "--on-unreadable", "skip")
    assert kept == ["One paragraph.", "Another one."]
    assert [one["file"] for one in selection["unread"]] == ["bad.txt"]


def test_one_long_line_needs_no_more_than_it(tmp_path):
    write_rows(tmp_path / "texts" / "a.jsonl", ["word " * 2_000_000, "a short text, with the usual words in it"])
    (tmp_path / "texts" / "b.txt").write_text("x" * 3_000_000)
    rules = ["--drop-exact", "--drop-near", "--max-boilerplate", "0.5", "--drop-damaged"]
    kept, selection = select(tmp_path / "texts", *rules)
    assert kept[0] == "word " * 2_000_000 and "a short text" in kept[1]
    assert selection["before"]["characters"] == 10_000_000 + 40 + 3_000_000


def test_a_source_that_changes_is_said(tmp_path):
    path = write_rows(tmp_path / "texts" / "a.jsonl", ["one text", "another text"])
    source = SourceDocuments(path)

    class Changing:
        def losses(self, texts):
            write_rows(path, ["one text", "a third text"])
            return np.arange(len(texts), dtype=float)

        def embeddings(self, texts):
            raise AssertionError

    rules = TextRules(loss_of="run", loss_between=(0, 1))
    with pytest.raises(ValueError, match=r"a\.jsonl was changed while it was read"):
        select_text(source, rules, tmp_path / "out", loss_model=Changing(), progress=False)
    assert [*tmp_path.iterdir()] == [tmp_path / "texts"]


def test_quantiles_of_a_loss():
    values = np.array([5.0, np.nan, 1.0, 2.0, 3.0, 4.0])
    is_kept, low, high = between(values, (0.25, 0.75))
    assert (low, high) == (2.0, 4.0) and is_kept.tolist() == [False, False, False, True, True, True]
    assert not between(np.array([np.nan]), (0.0, 1.0))[0].any()


def test_a_killed_selection_leaves_no_folder(tmp_path):
    """It is killed while it writes, when the folder that becomes the destination is there."""
    source = write_rows(tmp_path / "in" / "a.jsonl", [f"text {number} " + "word " * 100 for number in range(30_000)])
    command = ["data", "select", str(source), "--to", str(tmp_path / "out"), "--min-chars", "3"]
    process = subprocess.Popen([sys.executable, "-m", "trainkit.cli", *command], cwd=ROOT, env=environment())
    try:
        deadline = time.monotonic() + 60
        while not [*tmp_path.glob(".out-*.part/text-*")]:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "out").exists() and [*tmp_path.glob(".out-*.part")]
    assert main(command) == 0
    assert len(read_rows(tmp_path / "out")) == 30_000 and not [*tmp_path.glob(".out-*")]
