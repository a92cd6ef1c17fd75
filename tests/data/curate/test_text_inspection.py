"""What an inspection of text finds, beside sets, counters and a vocabulary that is read by hand."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from tests.data.curate.corpora import FRENCH, GERMAN, changed, paragraphs, write_rows
from trainkit.cli.main import main
from trainkit.data import WordPiece
from trainkit.data.curate.inspection import inspect_text
from trainkit.data.curate.lines import lines_of
from trainkit.data.curate.text_report import summary

BOILERPLATE = "Copyright the authors, who reserve all rights of this page."


@pytest.fixture(scope="module")
def texts():
    draw, own = random.Random(5), paragraphs(120)
    found = [*own, *own[:15], *(changed(text, draw) for text in own[15:30]), *GERMAN * 3, *FRENCH]
    found += [f"{text} {BOILERPLATE}" for text in own[40:60]]
    found += [
        "an � unknown character in here",
        "<p>a paragraph</p> that was a page",
        "two words",
        "日本語の文章です。" * 3,
    ]
    draw.shuffle(found)
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("corpus")
    write_rows(folder / "texts" / "a.jsonl", [*texts, "", "  "])
    (folder / "texts" / "c.pdf").write_bytes(b"%PDF")
    return folder / "texts"


@pytest.fixture(scope="module")
def found(corpus):
    return inspect_text(corpus, progress=False, num_workers=1)


def test_amounts_are_those_of_the_texts(found, texts):
    assert (found.documents, found.blank, found.files, found.files_not_read) == (len(texts), 2, 1, "1 .pdf")
    assert found.chars == sum(map(len, texts)) and found.num_bytes == sum(len(text.encode()) for text in texts)
    assert found.words == sum(len(text.split()) for text in texts)
    assert found.short == sum(len(text.split()) < 5 for text in texts)
    assert found.lengths == [round(float(x), 1) for x in np.quantile([*map(len, texts)], [0, 0.05, 0.5, 0.95, 1])]
    by_power = Counter(len(text).bit_length() - 1 for text in texts)
    assert [num for num in found.histogram.values() if num] == [by_power[power] for power in sorted(by_power)]


def test_duplicates_are_those_of_a_set(found, texts):
    assert found.duplicates == len(texts) - len({*texts})
    assert found.near_duplicates >= 15 and len(found.near_pairs) == min(20, found.near_duplicates)
    assert all("qvxzj" in pair.first_text + pair.second_text or pair.similarity >= 0.55 for pair in found.near_pairs)


def test_boilerplate_is_counted_in_different_documents(found, texts):
    counts = Counter(line for text in {*texts} for line in {*lines_of(text)})
    repeated = {line for line, num in counts.items() if num >= 10}
    assert {(line.text, line.documents) for line in found.repeated_lines} == {(one, counts[one]) for one in repeated}
    share = sum(len(line) for text in texts for line in lines_of(text) if line in repeated) / sum(map(len, texts))
    assert BOILERPLATE in repeated and found.boilerplate == pytest.approx(share)


def test_damage_and_languages(found):
    assert found.damage == {"U+FFFD": 1, "NUL and other control characters": 0, "mojibake": 0, "HTML": 1}
    assert found.languages["de"] >= 9 and found.languages["fr"] >= 2
    assert sum(found.languages.values()) == found.documents and max(found.languages, key=found.languages.get) == "en"


def test_tokens_are_those_of_the_vocabulary(corpus, texts, tmp_path):
    vocabulary = WordPiece.learn([text for text in texts if text.isascii()], 300)
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary.lines()) + "\n")
    found = inspect_text(corpus, vocab_file=tmp_path / "vocab.txt", progress=False)
    encoded = [vocabulary.encode(text) for text in texts]
    assert found.is_sample_all and found.tokens == sum(map(len, encoded))
    unknown = sum(tokens.count(vocabulary.unknown) for tokens in encoded)
    assert found.unknown == pytest.approx(unknown / found.tokens) and unknown > 0
    known = {token.removeprefix("##") for token in vocabulary.numbers}
    normalize = vocabulary.normalizer.backend().normalize_str
    lacking = Counter(c for text in texts for c in normalize(text) if c not in known and not c.isspace())
    assert lacking["語"] == 3 and found.lacking.items() <= lacking.items()
    worst = found.worst_lines[0]
    assert worst.tokens_per_word == max(line.tokens_per_word for line in found.worst_lines)
    assert worst.tokens_per_word == pytest.approx(
        len(vocabulary.encode(worst.text)) / len(worst.text.split()), abs=0.01
    )


def test_more_than_a_sample_is_estimated(corpus, texts, monkeypatch):
    monkeypatch.setattr("trainkit.data.curate.inspection.SAMPLE_CHARS", 20_000)
    vocabulary = inspect_text(corpus, progress=False)
    assert not vocabulary.is_sample_all and vocabulary.sampled_chars <= 20_000
    whole = sum(len(text) for text in texts)
    assert 0.1 * whole < vocabulary.tokens < whole
    assert ("sample" in dict(summary(vocabulary))) and vocabulary.duplicates == len(texts) - len({*texts})


def test_several_processes_find_the_same(corpus, found, monkeypatch):
    monkeypatch.setattr("trainkit.data.curate.documents._BATCH_DOCUMENTS", 16)
    assert inspect_text(corpus, progress=False, num_workers=2).facts() == found.facts()


def test_the_command_prints_and_writes(corpus, tmp_path, capsys):
    assert main(["data", "inspect", str(corpus), "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["next"][0] == f"trainkit train recipe=bert data.path={corpus}"
    assert f"trainkit data select {corpus} --to {corpus}_selected --drop-exact --drop-near --drop-damaged" in shown
    assert BOILERPLATE in shown and "exact duplicates" in shown and "█" in shown
    page = (tmp_path / "out" / "report.html").read_text()
    assert BOILERPLATE in page and "<p>a paragraph" not in page
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.json"}
    assert main(["data", "inspect", str(corpus), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report


def test_text_that_commands_a_terminal_is_not_obeyed(tmp_path, capsys):
    write_rows(tmp_path / "a.jsonl", [f"\x1b[2J cleared the screen, number {number}." for number in range(3)])
    write_rows(tmp_path / "b.jsonl", ["\x1b]0;title\x07 the same line again and again. " + "x" * n for n in range(12)])
    assert main(["data", "inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "the same line again" in out


def test_a_binary_file_is_named_and_the_rest_read(tmp_path, capsys):
    (tmp_path / "bad.txt").write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "good.txt").write_text("One paragraph of some words.\n\nAnother one of them.")
    assert main(["data", "inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "bad.txt is not UTF-8 text" in out and "--on-unreadable skip" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--resolution", "64"], "--resolution=64: is about images"),
        (["--kind", "image"], "Did you mean 'images'"),
        (["--vocab-file", "nowhere"], "--vocab-file=nowhere: must be"),
        (["--repeated-in", "0"], "--repeated-in=0: must be 1 or more"),
        (["--kind", "images"], "holds no image"),
        (["--field", "body"], "no text in field 'body'"),
    ],
)
def test_a_mistake_is_one_line(corpus, arguments, says, capsys):
    assert main(["data", "inspect", str(corpus), *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "\n\n \n"])
def test_nothing_is_said(tmp_path, content, capsys):
    (tmp_path / "a.txt").write_text(content)
    assert main(["data", "inspect", str(tmp_path)]) == 2
    assert "holds no document that can be read" in capsys.readouterr().err
    assert main(["data", "inspect", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
