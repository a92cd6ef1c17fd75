"""Counts, samples, processes and folders of curation, each beside a simple way to the same."""

import os
import random
import subprocess
import sys
from collections import Counter
from functools import partial

import numpy as np
import pytest

from tests.data.curate.corpora import FRENCH, GERMAN, changed, paragraphs, similarity
from trainkit.data.curate.destination import Destination
from trainkit.data.curate.diversity import lowest_share, similarities
from trainkit.data.curate.documents import Document
from trainkit.data.curate.languages import languages_of
from trainkit.data.curate.lines import LineCounts, line_keys, lines_of
from trainkit.data.curate.measures import damage_of
from trainkit.data.curate.near import NearTexts
from trainkit.data.curate.processes import in_processes
from trainkit.data.curate.sample import Sample
from trainkit.data.curate.seen import SeenKeys
from trainkit.data.minhash import FEWEST, WIDTH, required, signatures
from trainkit.data.shingles import shingles
from trainkit.data.split import content_key
from trainkit.errors import ConfigError, DataError


def test_counts_of_lines_are_exact_where_they_fit():
    draw = np.random.default_rng(0)
    parts = [np.unique(draw.zipf(1.3, 200).astype(np.uint64)) for _ in range(300)]
    counts, expected = LineCounts(), Counter(int(key) for part in parts for key in part)
    for part in parts:
        counts.add(part)
    keys = np.array([*expected, 2**60], np.uint64)
    assert counts.of(keys).tolist() == [*expected.values(), 0] and counts.most_missed == 0
    first = sorted(expected.items(), key=lambda one: (-one[1], one[0]))[:10]
    assert counts.most_frequent(10, 1) == first


def test_counts_of_too_many_lines_are_bounded():
    draw = np.random.default_rng(0)
    counts, expected = LineCounts(most=1000), Counter[int]()
    for _ in range(200):
        part = np.unique(np.concatenate([np.arange(50), draw.integers(100, 2**60, 150)]).astype(np.uint64))
        counts.add(part)
        expected.update(part.tolist())
    keys = np.array([*expected], np.uint64)
    missed = np.array([*expected.values()]) - counts.of(keys).astype(np.int64)
    assert missed.min() >= 0 and missed.max() <= counts.most_missed and counts.most_missed > 0
    assert {key for key, _ in counts.most_frequent(50, 10)} == {*range(50)}


def test_seen_keys_are_those_of_a_set():
    draw, seen, known = np.random.default_rng(0), SeenKeys(), set()
    for size in draw.integers(0, 300, 60):
        keys = draw.integers(0, 3000, size).astype(np.uint64)
        expected = []
        for key in keys.tolist():
            expected.append(key not in known)
            known.add(key)
        assert seen.add(keys).tolist() == expected


def test_near_texts_are_those_of_all_pairs(tmp_path):
    draw, texts = random.Random(1), paragraphs(250)
    texts += [changed(text, draw) for text in texts[:80]] + [changed(text, draw) for text in texts[:20]]
    with NearTexts(tmp_path) as near:
        for start in range(0, len(texts), 64):
            made = shingles(texts[start : start + 64], WIDTH)
            near.add(made, signatures(made))
        found = near.repeats(np.ones(len(texts), np.bool_))
    assert not [*tmp_path.iterdir()]

    def is_near(one, other):
        jaccard, fewest = similarity(texts[one], texts[other])
        return fewest >= FEWEST and jaccard >= required(fewest) - 1e-9

    kept = [number for number in range(len(texts)) if found[number] < 0]
    dropped = [number for number in range(len(texts)) if found[number] >= 0]
    assert all(found[number] < number and found[found[number]] < 0 for number in dropped)
    assert all(is_near(number, found[number]) for number in dropped)
    pairs = [(one, other) for place, one in enumerate(kept) for other in kept[:place] if is_near(one, other)]
    assert len(dropped) >= 80 and len(pairs) <= 0.03 * len(dropped)


def test_only_what_is_left_is_compared(tmp_path):
    text = paragraphs(1)[0]
    made = shingles([text, changed(text, random.Random(0)), "short"], WIDTH)
    with NearTexts(tmp_path) as near:
        near.add(made, signatures(made))
        assert near.repeats(np.array([True, True, True])).tolist() == [-1, 0, -1]
        assert near.repeats(np.array([False, True, True])).tolist() == [-1, -1, -1]


def test_many_copies_need_little(tmp_path):
    """Each of thousands of texts agrees with all others in every band."""
    made = shingles(["the same words in each of them, again and again and once more"] * 4000, WIDTH)
    with NearTexts(tmp_path) as near:
        near.add(made, signatures(made))
        assert near.repeats(np.ones(4000, np.bool_)).tolist() == [-1] + [0] * 3999


def test_languages_of_sentences():
    english = paragraphs(20)
    expected = ["de"] * len(GERMAN) + ["fr"] * len(FRENCH) + ["en"] * len(english)
    found = languages_of([*GERMAN, *FRENCH, *english])
    assert sum(one == other for one, other in zip(found, expected, strict=True)) >= len(expected) - 1
    assert languages_of(["", "1234 5678 90", "abc"]) == ["unknown"] * 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Schön, naïve, 東京 and Ω are fine; 3 < 4 & 5 > 2.", 0),
        ("a \ufffd b", 1),
        ("a \0 b", 2),
        ("\u001b[31mred", 2),
        ("SchÃ¶ne GrÃ¼ÃŸe", 4),
        ("it â€œsaysâ€\x9d so", 4),
        ("<div class='x'>text</div>", 8),
        ("fish &amp; chips&nbsp;", 8),
        ("if a<b and b>c: List<int>", 0),
    ],
)
def test_damage(text, expected):
    assert damage_of(text) == expected


def test_lines_end_at_sentences_too():
    assert lines_of("First line of this text.\nsecond  line of it, longer. And the third one here!") == [
        "First line of this text.",
        "second line of it, longer.",
        "And the third one here!",
    ]
    keys, chars = line_keys("The same line, twice.\nThe same line, twice.")
    assert keys[0] == keys[1] and chars.tolist() == [21, 21]


def test_a_sample_is_an_even_choice():
    documents = [Document(number, "a", number + 1, f"document {number} " * 10) for number in range(4000)]
    keys = np.array([content_key(document.text) for document in documents], np.uint64)
    sample, again = Sample(60_000), Sample(60_000)
    for start in range(0, 4000, 100):
        sample.add(documents[start : start + 100], keys[start : start + 100])
    again.add(documents, keys)
    numbers = [document.number for document in sample.documents]
    assert numbers == sorted(numbers) == [document.number for document in again.documents]
    assert 20_000 < sample.num_chars <= 60_000 and not sample.is_all
    assert abs(np.mean(numbers) - 2000) < 4 * 4000 / np.sqrt(12 * len(numbers))
    whole = Sample(10**9)
    whole.add(documents, keys)
    assert whole.is_all and len(whole.documents) == 4000


def test_similarities_are_those_of_a_direct_computation():
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(5, 8)) * 4
    vectors = (centres[draw.integers(0, 5, 300)] + draw.normal(size=(300, 8))).astype(np.float32)
    vectors[7] = vectors[3]
    found = similarities(vectors, num_clusters=1)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(unit @ unit.mean(axis=0))  # from the one that is farthest from the centre
    expected = np.full(300, -1.0)
    for place in range(1, 300):
        expected[order[place]] = max(float(unit[order[place]] @ unit[other]) for other in order[:place])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert max(found[3], found[7]) == pytest.approx(1.0)
    is_kept = lowest_share(found, 0.9)
    assert is_kept.sum() == 270 and found[is_kept].max() <= found[~is_kept].min()
    of_clusters = similarities(vectors, num_clusters=5)
    assert (of_clusters <= 1.0 + 1e-6).all() and (of_clusters == -1.0).sum() == 5


def test_similarities_are_the_same_each_time():
    vectors = np.random.default_rng(0).normal(size=(2000, 16)).astype(np.float32)
    assert similarities(vectors).tobytes() == similarities(vectors).tobytes()
    assert similarities(vectors[:1]).tolist() == [-1.0]


def _lengths(texts):
    return os.getpid(), [len(text) for text in texts]


def _die(texts):
    os._exit(9)


def test_processes_keep_the_order():
    batches = [["x" * (number % 7)] * 3 for number in range(40)]
    found = [*in_processes(_lengths, iter(batches), 2)]
    assert [lengths for _, lengths in found] == [[number % 7] * 3 for number in range(40)]
    assert os.getpid() not in {pid for pid, _ in found}
    assert {pid for pid, _ in in_processes(_lengths, iter(batches[:3]), 2)} == {os.getpid()}


def test_a_killed_process_is_one_line():
    with pytest.raises(DataError, match="--num-workers 1"):
        [*in_processes(_die, iter([["a"]] * 20), 2)]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with Destination(target) as aside:
        (aside / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content" and [*tmp_path.iterdir()] == [target]
    with pytest.raises(ConfigError, match="exists already"):
        Destination(target)
    with pytest.raises(RuntimeError), Destination(tmp_path / "other") as aside:
        raise RuntimeError
    assert [*tmp_path.iterdir()] == [target]


def test_what_a_killed_process_left_is_removed(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from trainkit.data.curate.destination import Destination\n"
        "with Destination(Path(sys.argv[1])) as aside: (aside / 'half').write_text('x'); os.kill(os.getpid(), 9)"
    )
    target = tmp_path / "out"
    assert subprocess.run([sys.executable, "-c", code, str(target)], check=False).returncode == -9
    assert not target.exists() and len([*tmp_path.iterdir()]) == 1
    with Destination(target) as aside:
        (aside / "whole").write_text("x")
    assert [*tmp_path.rglob("*")] == [target, target / "whole"]


@pytest.mark.parametrize("inside", ["source/out", "."])
def test_a_source_is_not_written_into(tmp_path, inside):
    (tmp_path / "source").mkdir()
    with pytest.raises(ConfigError, match=r"--to=.*(must be beside|exists already)"):
        Destination(tmp_path / inside, tmp_path / "source")


def test_another_process_keeps_its_folder(tmp_path):
    with Destination(tmp_path / "out") as first, Destination(tmp_path / "out") as second:
        (first / "a").write_text("x")
        assert first.is_dir() and second.is_dir()
        (second / "b").write_text("x")
        first_names = partial(os.listdir, first)
        assert first_names() == ["a"]
        second.rename(tmp_path / "moved")  # so that only one of them ends up there
        second.mkdir()
    assert [*(tmp_path / "out").iterdir()]
