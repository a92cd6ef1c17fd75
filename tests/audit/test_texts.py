"""Near-duplicates of texts: what the index finds, beside exact Jaccard by brute force on sets of words."""

import random
import re
from itertools import pairwise

import pytest

from trainkit.audit import audit
from trainkit.audit.contamination import Contamination
from trainkit.audit.texts import TextIndex
from trainkit.data import Entry, Sides
from trainkit.data.minhash import FEWEST, required
from trainkit.data.readers import read_documentation
from trainkit.data.shingles import shingles
from trainkit.data.split import content_key


@pytest.fixture(scope="module")
def texts():
    """Some thousand paragraphs of the documentation of NumPy and of argparse and friends, each once."""
    import argparse
    import logging
    from pathlib import Path

    import numpy

    folders = [Path(numpy.__file__).parent / "lib", Path(numpy.__file__).parent / "ma", Path(logging.__file__).parent]
    files = [Path(argparse.__file__), *(file for folder in folders for file in sorted(folder.glob("*.py")))]
    found = list(dict.fromkeys(text for file in files for text in read_documentation(file, "")))
    random.Random(0).shuffle(found)
    assert len(found) > 1500
    return found


def changed(text, draw):
    words = text.split()
    words[draw.randrange(len(words))] = "qvxzj"
    return " ".join(words)


def pairs_of(text):
    """The oracle's shingles: pairs of neighbouring words, as strings."""
    words = [re.sub(r"[^0-9a-z]", "", word) for word in text.lower().split()]
    words = [word for word in words if word]
    return set(pairwise(words))


def brute(first, second):
    one, other = pairs_of(first), pairs_of(second)
    return len(one & other) / max(1, len(one | other)), min(len(one), len(other))


def entries(texts, name):
    return [Entry(content_key(text), f"{name} {number}", text=text) for number, text in enumerate(texts)]


def sides(train, held_out):
    return Sides(train=lambda: iter(entries(train, "train")), held_out=lambda: iter(entries(held_out, "held-out")))


def test_planted_leaks_are_found(texts):
    draw = random.Random(1)
    held_out, train = texts[:300], texts[300:]
    planted = [*held_out[:100], *(changed(text, draw) for text in held_out[100:200])]
    report = audit(sides([*train, *planted], held_out))
    found = {int(leak.train.split()[1]): int(leak.held_out.split()[1]) for leak in report.leaks}
    exact, near = (range(len(train) + start, len(train) + start + 100) for start in (0, 100))
    assert sum(place in found for place in exact) >= 99
    assert sum(place in found for place in near) >= 95
    everything = [*train, *planted]
    wrong = [place for place, number in found.items() if brute(everything[place], held_out[number])[0] < 0.55]
    assert len(wrong) <= 0.01 * len(found)
    assert report.is_complete and report.train["exact"] == 100


def test_the_index_agrees_with_brute_force(texts):
    draw = random.Random(2)
    held_out = [text for text in texts[:200] if text.isascii()]
    asked = [changed(text, draw) for text in held_out] + [text for text in texts[200:500] if text.isascii()]
    index = TextIndex()
    for start in range(0, len(held_out), 64):
        index.add(held_out[start : start + 64])
    found = {(match.train, match.held_out): match.similarity for match in index.matches(asked)}
    expected = {}
    for place, text in enumerate(asked):
        for number, other in enumerate(held_out):
            similarity, fewest = brute(text, other)
            if fewest >= FEWEST and similarity >= required(fewest) - 1e-9:
                expected[place, number] = similarity
    assert len(expected) > 100 and found.keys() <= expected.keys()
    assert all(found[pair] == pytest.approx(expected[pair]) for pair in found)
    assert len(found) >= 0.97 * len(expected)


@pytest.mark.parametrize("text", ["", " ", "...", "a", "word", "漢字" * 40, "x" * 70_000, "\ud800 half", "a\0b c"])
def test_any_text_can_be_compared(text):
    report = audit(sides([text, "one other text that is long enough to be compared with all"], [text]))
    assert report.train == {"exact": 1} and report.num_affected == 1


def test_nothing_is_compared_with_nothing():
    assert audit(sides([], [])).is_clean
    assert audit(sides(["a b c d e f g h i"], [])).num_held_out == 0


def test_short_texts_must_be_equal():
    assert audit(sides(["a quick brown fox jumps"], ["a quick brown fox jumped"])).is_clean


def test_punctuation_and_case_do_not_count():
    first, second = (
        "The cat, it's said, sat on “the” mat - again and again.",
        "the cat it\u2019s said sat on the mat again and again",
    )
    assert audit(sides([first], [second])).train == {"near": 1}


def test_ideographs_are_words():
    assert len(shingles(["漢字かな"], 2).of(0)) == 3


def test_copies_in_the_index_all_count(texts):
    copies = [texts[0], texts[0] + ".", texts[0] + "!"]
    assert audit(sides([texts[0] + "?"], copies)).held_out == {"near": 3}


def test_a_corpus_that_holds_a_test_set_is_found(texts):
    held_out, others = [text for text in texts[:200] if len(text.split()) > 10], texts[300:600]
    corpus = [*others, *(f"Before it. {text} And after it." for text in held_out[:50])]
    report = audit(sides(texts[600:700], held_out), corpus=iter(corpus))
    seen = {int(leak.held_out.split()[1]) for leak in report.leaks if leak.kind == "seen"}
    assert {*range(50)} <= seen and report.held_out["seen"] == len(seen) < 60
    assert Contamination(["too short"]).num_comparable == 0
