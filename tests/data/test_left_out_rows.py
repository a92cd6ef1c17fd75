"""Rows of text that cannot be read: an error that says what to set, or left out and counted."""

import gzip
import json

import pytest

from tests.jobs import run
from tests.storage.servers import NO_NGINX, nginx, serving
from trainkit.data import Text
from trainkit.errors import DataError
from trainkit.testing import run_ranks

HINT = r"\(or set data\.on_unreadable=skip, which leaves it out and counts it\)"


def _rows(path, bad=(), num=400):
    lines = [
        json.dumps({"text": f"Line number {i} says that {i * 7919} is no prime but a product."}) for i in range(num)
    ]
    for place, text in bad:
        lines[place] = text
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _load(path, cache, **settings):
    return Text(path=path, vocab_size=300, sequence_length=16, cache_dir=cache, **settings).load(progress=False)


BAD = [(7, "{broken"), (9, '{"other": "x"}'), (200, '{"text": 5}')]


def test_a_bad_row_names_its_place_and_what_to_set(tmp_path):
    _rows(tmp_path / "in" / "a.jsonl", BAD)
    with pytest.raises(DataError, match=rf"in/a\.jsonl, line 8: not a JSON object \(.*\); correct or remove it {HINT}"):
        _load(tmp_path / "in", tmp_path / "cache")
    with pytest.raises(DataError, match="on_unreadable=ignore: must be error or skip"):
        _load(tmp_path / "in", tmp_path / "cache", on_unreadable="ignore")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_bad_rows_are_left_out_and_counted(tmp_path, kind):
    _rows(tmp_path / "in" / "a.jsonl", BAD)
    _rows(tmp_path / "good" / "a.jsonl")
    source = tmp_path / "in" if kind == "folder" else tmp_path / "in" / "a.jsonl"
    data = _load(source, tmp_path / "cache", on_unreadable="skip")
    assert data.facts["rows left out"] == 3
    good = _load(tmp_path / "good", tmp_path / "cache")
    assert "rows left out" not in good.facts
    documents = [facts["documents"] + facts["held-out documents"] for facts in (good.facts, data.facts)]
    assert documents[0] - documents[1] == 3
    again = _load(source, tmp_path / "cache", on_unreadable="skip")
    assert again.facts == data.facts and again.fingerprints() == data.fingerprints()
    with pytest.raises(DataError, match="line 8: not a JSON object"):  # what was built without them is no cache of it
        _load(source, tmp_path / "cache")


def test_of_other_files_the_rest_is_left_out(tmp_path):
    _rows(tmp_path / "in" / "a.jsonl")
    text = "\n\n".join(f"Paragraph {i} of a file that is cut short." for i in range(50_000)).encode()
    packed = gzip.compress(text)
    (tmp_path / "in" / "b.txt.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "in" / "c.txt").write_bytes(b"\xff\xfe not UTF-8")
    (tmp_path / "in" / "d.csv").write_text("other\nvalue\n")
    data = _load(tmp_path / "in", tmp_path / "cache", on_unreadable="skip")
    assert data.facts["rows left out"] == 3
    assert 400 < data.facts["documents"] + data.facts["held-out documents"] < 50_400


def test_nothing_but_bad_rows_is_an_error(tmp_path):
    _rows(tmp_path / "in" / "a.jsonl", [(i, "{") for i in range(400)])
    with pytest.raises(DataError, match=r"too few to hold one out.*; 400 rows were left out, the first: .*line 1: not"):
        _load(tmp_path / "in", tmp_path / "cache", on_unreadable="skip")


@pytest.mark.skipif(nginx() is None, reason=NO_NGINX)
def test_behind_a_url_it_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "pieces"))
    _rows(tmp_path / "in" / "a.jsonl", BAD)
    with serving(tmp_path, tmp_path) as port:
        url = f"http://127.0.0.1:{port}/in"
        with pytest.raises(DataError, match=rf"{url}/a\.jsonl, line 8: not a JSON object .* {HINT}"):
            _load(url, tmp_path / "cache")
        far = _load(url, tmp_path / "cache", on_unreadable="skip")
    near = _load(tmp_path / "in", tmp_path / "cache", on_unreadable="skip")
    assert far.facts == near.facts and far.facts["rows left out"] == 3


def _facts(path, cache):
    return _load(path, cache, on_unreadable="skip").facts


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rank_counts_the_same(tmp_path, ranks):
    _rows(tmp_path / "in" / "a.jsonl", BAD)
    [first, *others] = run_ranks(_facts, ranks, tmp_path / "in", tmp_path / "cache")
    assert first["rows left out"] == 3 and all(one == first for one in others)


def test_the_count_is_in_the_manifest_of_a_run(tmp_path):
    _rows(tmp_path / "in" / "a.jsonl", BAD)
    small = ["recipe.model.hidden_size=16", "recipe.model.num_layers=1", "recipe.model.num_heads=2"]
    short = ["recipe.num_steps=2", "schedule.warmup=1", "evaluate_every=null", "save_every=null", "tracking=none"]
    data = [f"data.path={tmp_path / 'in'}", "data.vocab_size=300", f"data.cache_dir={tmp_path / 'cache'}"]
    arguments = ["recipe=bert", *small, *short, *data, f"run_dir={tmp_path / 'run'}"]
    done = run([*arguments, "data.on_unreadable=skip", "recipe.batch_size=8"])
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["data"]["counts"]["rows left out"] == 3
    assert "rows left out: 3" in done.stdout + done.stderr
