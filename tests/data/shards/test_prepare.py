"""`trainkit data prepare`: the same bytes whoever makes them, killed or not, and one line for what cannot be."""

import json
import multiprocessing
import os
import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data import test_images as images
from tests.data.test_text import make_documents
from trainkit.cli.main import main
from trainkit.data import Images, Text
from trainkit.data.shards import prepare as preparing
from trainkit.data.shards import prepare_images, prepare_text
from trainkit.data.shards.layout import PIECE_BYTES
from trainkit.data.shards.prepare import kind_of, prepare
from trainkit.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Many parts and shards of little data, in processes that are forked from this one, too."""
    monkeypatch.setattr(preparing, "MB", PIECE_BYTES // 4)
    monkeypatch.setattr(prepare_text.TextBuild.__init__, "__defaults__", (20_000, 20_000))
    monkeypatch.setattr(prepare_images.ImageBuild.__init__, "__defaults__", (1 << 24, 16))


def make_source(folder: Path, num: int = 1500) -> Path:
    folder.mkdir()
    documents = make_documents(num)
    for number in range(5):
        own = documents[number * num // 5 : (number + 1) * num // 5]
        (folder / f"{number}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in own))
    return folder


def make(source: str | Path, to: str | Path, **given: Any) -> Any:
    settings = {"vocab_size": 120, **given.pop("settings", {})}
    return prepare(source, to, shard_mb=1, settings=settings, progress=False, **{"num_workers": 1, **given})


def files(folder: Path) -> dict[str, bytes]:
    assert not (folder / ".work").exists()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_bytes_do_not_depend_on_parts(tmp_path, monkeypatch):
    source = make_source(tmp_path / "source")
    made = make(source, tmp_path / "small")
    assert not made.was_there and made.index.layouts["train"].num_shards > 2
    monkeypatch.setattr(prepare_text.TextBuild.__init__, "__defaults__", (1 << 22, 1 << 24))
    make(source, tmp_path / "large")
    assert files(tmp_path / "small") == files(tmp_path / "large")


def test_bytes_do_not_depend_on_workers(tmp_path, monkeypatch):
    source = make_source(tmp_path / "source")
    make(source, tmp_path / "one")
    make(source, tmp_path / "two", num_workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def _killed_at(nth: int, build: Any) -> None:
    """SIGKILL to this process just before the nth file that it makes is in its place."""
    fsync, left = os.fsync, [nth]

    def counted(fd: Any) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(fd)

    os.fsync = counted
    build()


@pytest.mark.parametrize("kind", ["text", "images"])
def test_one_that_is_killed_at_any_moment_goes_on(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # children are forked
    if kind == "text":
        build = partial(make, make_source(tmp_path / "source"))
    else:
        source = images.fill(tmp_path / "source", 80)
        build = partial(prepare, source, shard_mb=1, num_workers=1, settings={"resolution": 16}, progress=False)
    context, draw, num_killed = multiprocessing.get_context("fork"), random.Random(1), 0
    for attempt in range(100):
        process = context.Process(
            target=_killed_at, args=(draw.randint(1, 12 + 3 * attempt), partial(build, tmp_path / "to"))
        )
        process.start()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
        num_killed += process.exitcode != 0
        if process.exitcode == 0:
            break
    assert num_killed >= 4 and process.exitcode == 0
    build(tmp_path / "to")
    build(tmp_path / "undisturbed")
    assert files(tmp_path / "to") == files(tmp_path / "undisturbed")


def test_several_at_once_share_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    source = make_source(tmp_path / "source")
    context, tokenized = multiprocessing.get_context("fork"), multiprocessing.get_context("fork").Value("q", 0)
    write = prepare_text.TextBuild._write_tokens

    def counted(self, number, path):
        with tokenized.get_lock():
            tokenized.value += 1
        write(self, number, path)

    monkeypatch.setattr(prepare_text.TextBuild, "_write_tokens", counted)
    processes = [context.Process(target=make, args=(source, tmp_path / "to")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    shared = tokenized.value
    make(source, tmp_path / "alone")
    assert files(tmp_path / "to") == files(tmp_path / "alone")
    assert tokenized.value == 2 * shared, "no part was made twice"


def test_a_second_run_does_nothing_and_others_are_refused(tmp_path):
    source = make_source(tmp_path / "source")
    make(source, tmp_path / "to")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "to").iterdir()}
    assert make(source, tmp_path / "to").was_there
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "to").iterdir()} == before
    with pytest.raises(DataError, match=r"vocab_size=130: the shards in .* were made with 120; give that, or another"):
        make(source, tmp_path / "to", settings={"vocab_size": 130})
    (source / "9.txt").write_text("Another text.")
    with pytest.raises(DataError, match="holds shards of something else than SOURCE is now"):
        make(source, tmp_path / "to")


def test_folders_that_cannot_be(tmp_path):
    source = make_source(tmp_path / "source")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("no")
    with pytest.raises(DataError, match=r"holds mine\.txt, which is no part of shards"):
        make(source, tmp_path / "used")
    with pytest.raises(DataError, match="must not be in SOURCE"):
        make(source, source / "to")
    with pytest.raises(DataError, match="does not exist"):
        make(tmp_path / "none", tmp_path / "to")
    make(source, tmp_path / "to")
    with pytest.raises(DataError, match="holds shards, which are ready to train on"):
        make(tmp_path / "to", tmp_path / "again")


def test_shards_that_are_not_complete_are_no_data(tmp_path, monkeypatch):
    source = make_source(tmp_path / "source")

    def ends(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_text.TextBuild, "_finish", ends)
        with pytest.raises(KeyboardInterrupt):
            make(source, tmp_path / "to")
    with pytest.raises(DataError, match="are not complete: run the same trainkit data prepare again"):
        Text(path=tmp_path / "to")
    with pytest.raises(DataError, match=r"vocab_size=130: the shards in .* were begun with 120"):
        make(source, tmp_path / "to", settings={"vocab_size": 130})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_siz": 5}, r"vocab_siz=5: of text it must be one of .* Did you mean 'vocab_size'"),
        ({"vocab_size": "many"}, "vocab_size=many: input should be a valid integer"),
        ({"held_out": 0.9}, r"held_out=0\.9: must be above 0"),
        ({"on_unreadable": "maybe"}, "on_unreadable=maybe: input should be 'error' or 'skip'"),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, message):
    source = make_source(tmp_path / "source")
    with pytest.raises((ConfigError, DataError), match=message):
        make(source, tmp_path / "to", settings=settings)
    assert not (tmp_path / "to").exists()


def test_bad_rows_are_an_error_or_counted(tmp_path):
    source = make_source(tmp_path / "source", 400)
    good = [json.loads(line) for line in (source / "2.jsonl").read_text().splitlines()]
    bad = ["{half", '{"other": 1}', '{"text": 5}', '{"text": "\\ud800"}']
    lines = [json.dumps(row) for row in good]
    (source / "2.jsonl").write_text("\n".join([*lines[:10], *bad, *lines[10:]]))
    with pytest.raises(DataError, match=r"2\.jsonl, line 11: not a JSON object .* \(or set on_unreadable=skip"):
        make(source, tmp_path / "to")
    (source / "9.txt").write_bytes(b"A first paragraph of it.\n\n" + b"x" * (1 << 21) + b"\n\nand \xff no text")
    made = make(source, tmp_path / "skipped", settings={"on_unreadable": "skip"})
    assert made.index.facts["rows left out"] == 5
    assert [line.partition(",")[0].rpartition("/")[2] for line in made.index.more["left_out"][:4]] == ["2.jsonl"] * 4
    assert "9.txt is not UTF-8 text" in made.index.more["left_out"][4]
    loaded = Text(path=tmp_path / "skipped", cache_dir=tmp_path / "cache").load(progress=False)
    assert loaded.describe()["rows left out"] == 5


def test_a_split_of_its_own_is_kept(tmp_path):
    import datasets

    documents = make_documents(300)
    splits = {"train": documents[:250], "validation": documents[240:]}
    whole = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": own}) for name, own in splits.items()})
    whole.save_to_disk(str(tmp_path / "source"))
    make(tmp_path / "source", tmp_path / "to")
    plain = Text(path=tmp_path / "source", vocab_size=120, cache_dir=tmp_path / "cache").load(progress=False)
    loaded = Text(path=tmp_path / "to", cache_dir=tmp_path / "cache").load(progress=False)
    assert loaded.fingerprints() == plain.fingerprints() and loaded.describe() == plain.describe()
    assert loaded.facts["held-out documents"] == 60


# -- images ------------------------------------------------------------------------------------------------------------


def batch(dataset: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = dataset.__getitems__(list(range(len(dataset))))
    return found


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for name, start in (("cats", 0), ("dogs", 60)):
        images.fill(folder / name, 60, start=start)
    images.noise(3).save(folder / "dogs" / "a_copy_of_3.png")
    (folder / "dogs" / "broken.png").write_bytes(b"no image")
    return folder


def test_images_are_those_without_shards(tmp_path, pictures):
    settings: dict[str, Any] = {"resolution": 16, "labels": "folders", "on_unreadable": "skip", "held_out": 0.2}
    made = prepare(pictures, tmp_path / "to", shard_mb=1, num_workers=1, settings=settings, progress=False)
    assert made.index.layouts["train.00016"].num_shards > 2
    plain = Images(path=pictures, cache_dir=tmp_path / "cache", **settings).load(progress=False)
    loaded = Images(
        path=tmp_path / "to", resolution=16, held_out_samples=7, verify="full", cache_dir=tmp_path / "cache"
    )
    fewer = Images(path=pictures, cache_dir=tmp_path / "cache", held_out_samples=7, **settings).load(progress=False)
    ours, all_of_it = loaded.load(progress=False), Images(path=tmp_path / "to", resolution=16).load(progress=False)
    assert ours.fingerprints() == fewer.fingerprints() and all_of_it.fingerprints() == plain.fingerprints()
    assert all_of_it.describe() == plain.describe() and ours.classes == plain.classes == ("cats", "dogs")
    assert plain.facts["unreadable images"] == 1 and "broken.png" in made.index.more["left_out"][0]
    for ours_of_side, theirs in (
        (ours.train, plain.train),
        (ours.held_out, fewer.held_out),
        (all_of_it.held_out, plain.held_out),
    ):
        for resolution in (4, 8, 16):
            found, expected = batch(ours_of_side.at(resolution)), batch(theirs.at(resolution))
            assert torch.equal(found["images"], expected["images"]) and torch.equal(found["labels"], expected["labels"])
        assert np.array_equal(ours_of_side.keys, theirs.keys) and np.array_equal(ours_of_side.labels, theirs.labels)
    assert ours.train.block_sizes.sum() == len(ours.train) and ours.held_out.block_sizes is None
    assert ours.train[3]["images"].shape == (3, 16, 16)


def test_images_of_shards_are_audited_and_left_out(tmp_path, pictures):
    (pictures / "dogs" / "broken.png").unlink()
    prepare(pictures, tmp_path / "to", shard_mb=1, num_workers=1, settings={"resolution": 16}, progress=False)
    specification = Images(path=tmp_path / "to", resolution=16)
    plain = Images(path=pictures, resolution=16, cache_dir=tmp_path / "cache")
    ours, theirs = specification.sides(), plain.sides(progress=False)
    assert ours is not None and theirs is not None and ours.fingerprint == theirs.fingerprint
    for one, other in zip([*ours.train(), *ours.held_out()], [*theirs.train(), *theirs.held_out()], strict=True):
        assert (one.key, one.name) == (other.key, other.name) and one.pixels is not None and other.pixels is not None
        assert np.array_equal(one.pixels, other.pixels)
    from trainkit.data.sides import LeftOut

    first = LeftOut(np.array([entry.key for entry in ours.train()][:5], np.uint64))
    without = specification.without(first).load(progress=False)
    expected = plain.without(first).load(progress=False)
    assert torch.equal(batch(without.train)["images"], batch(expected.train)["images"])
    assert without.facts["leaking images dropped"] == 5
    assert without.fingerprints() == expected.fingerprints()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 32}, r"data\.resolution=32: the shards in .* were made with 16; leave data\.resolution out"),
        ({"resolution": 16, "channels": 1}, r"data\.channels=1: the shards in .* were made with 3"),
        ({"resolution": 16, "fit": "pad"}, r"data\.fit=pad: the shards in .* were made with crop"),
    ],
)
def test_settings_that_contradict_shards_of_images(tmp_path, settings, message):
    source = images.fill(tmp_path / "source", 30)
    prepare(source, tmp_path / "to", shard_mb=1, num_workers=1, settings={"resolution": 16}, progress=False)
    with pytest.raises(DataError, match=message):
        Images(path=tmp_path / "to", **settings).load(progress=False)


def test_kinds_are_told_apart(tmp_path):
    assert kind_of(make_source(tmp_path / "text")) == "text"
    assert kind_of(images.fill(tmp_path / "images", 2)) == "images"
    (tmp_path / "images" / "notes.txt").write_text("both")
    with pytest.raises(DataError, match="both text and images: say which with --kind"):
        kind_of(tmp_path / "images")


def test_the_command_says_what_to_type_next(tmp_path, capsys):
    source, to = make_source(tmp_path / "source", 200), tmp_path / "to"
    words = ["data", "prepare", str(source), "--to", str(to), "--workers", "1", "vocab_size=120"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert shown.out.endswith(f"train on them:\n  trainkit train recipe=bert data.path={to}\n")
    assert main(words) == 0
    assert "holds these shards already: nothing to do" in capsys.readouterr().err
    assert main([*words[:-1], "vocab_size=5"]) == 2
    assert "trainkit: error: vocab_size=5: must be at least 100; set vocab_size" in capsys.readouterr().err
