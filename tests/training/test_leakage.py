"""The audit at the start of a run: told, refused or left out, the same on every rank and after a resume."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import trainkit
from trainkit.data import Datasets, Examples, Images, Text, UnpairedImages
from trainkit.errors import ConfigError, DataError
from trainkit.testing import run_ranks
from trainkit.training.leakage import look
from trainkit.training.result import RESULT_FILE

WORDS = [chr(first) + chr(second) for first in range(97, 101) for second in range(97, 102)]


def sentence(number, length=14):
    draw = np.random.default_rng(number)
    return " ".join(draw.choice(WORDS, length))


def table(path, numbers):
    path.write_text("text,label\n" + "".join(f"{sentence(number)},{'ab'[number % 2]}\n" for number in numbers))
    return path


def given(folder, shared=4):
    """30 examples to train on, of which `shared` are held out, too."""
    return Examples(
        path=table(folder / "train.csv", range(30)), held_out_path=table(folder / "test.csv", range(30 - shared, 40))
    )


def make(runtime, *, data):
    return data


def looked(data, run_dir=None, **options):
    runtime = trainkit.Runtime(strategy="single", device="cpu", run_dir=run_dir, tracker=trainkit.Tracker())
    try:
        return look(runtime, partial(make, data=data), **options)
    finally:
        runtime.close()


def data_of(done):
    assert isinstance(done.make_recipe, partial)
    return done.make_recipe.keywords["data"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))


def test_warn_says_how_many_and_what_to_type(tmp_path):
    found = looked(given(tmp_path), tmp_path / "run").found["audit"]
    assert found["held_out"] == {"exact": 4} and found["complete"] and found["of"] == {"train": 30, "held_out": 14}
    assert "set on_leak=drop" in found["line"] and "4 of 14 held-out examples leak" in found["line"]
    assert len(json.loads((tmp_path / "run" / "audit.json").read_text())["pairs"]) == 4
    again = looked(given(tmp_path), tmp_path / "run").found["audit"]
    assert again == found  # from the cache


def test_error_refuses(tmp_path):
    with pytest.raises(DataError, match=r"on_leak=error: 4 of 14 .*; the pairs are in .*set on_leak=drop"):
        looked(given(tmp_path), tmp_path / "run", on_leak="error")
    assert looked(given(tmp_path, shared=0), on_leak="error").found["audit"]["held_out"] == {}


def test_drop_leaves_out_what_leaks(tmp_path):
    done = looked(given(tmp_path), on_leak="drop")
    data = data_of(done).load()
    assert len(data.train) == 26 and len(data.held_out) == 14 and done.found["audit"]["train_dropped"] == 4
    assert not {one.key() for one in data.train} & {one.key() for one in data.held_out}
    assert data.facts["leaking examples dropped"] == 4
    assert data.fingerprints() != given(tmp_path).load().fingerprints()


def test_drop_of_more_than_half_is_refused(tmp_path):
    with pytest.raises(DataError, match="would leave out 20 of 30 training examples, more than half"):
        looked(given(tmp_path, shared=20), on_leak="drop")
    line = looked(given(tmp_path, shared=20)).found["audit"]["line"]
    assert "20 of" in line and "drop" not in line, "what would be refused is not advised"


def test_ignore_does_not_look(tmp_path):
    assert looked(given(tmp_path), on_leak="ignore").found == {}
    assert looked(Datasets(train=range(9), held_out=range(2))).found["audit"]["line"].startswith("Datasets was not")


def test_data_that_cannot_leave_anything_out_are_refused(tmp_path):
    class Fixed:
        def sides(self):
            return given(tmp_path).sides()

    with pytest.raises(ConfigError, match="on_leak=drop: Fixed cannot leave examples out"):
        looked(Fixed(), on_leak="drop")


def test_data_that_cannot_be_compared_are_said_so():
    data = Datasets(train=range(9), held_out=range(2))
    for on_leak in ("error", "drop"):
        with pytest.raises(ConfigError, match=f"on_leak={on_leak}: Datasets cannot be audited"):
            looked(data, on_leak=on_leak)
    assert looked(object()).found["audit"]["line"].startswith("object was not looked at")
    far = SimpleNamespace(path="https://me:pw@host/shards")
    line = looked(far).found["audit"]["line"]
    assert line.startswith("data.path=https://***@host/shards was not looked at: all of it would be downloaded")
    assert looked(None).found == {} == looked(Datasets((), ()), on_leak="drop").found


def test_minutes_must_be_above_zero(tmp_path):
    with pytest.raises(ConfigError, match="audit_minutes=0"):
        looked(given(tmp_path), audit_minutes=0)


def test_text_is_left_out_before_it_is_tokenized(tmp_path):
    texts = [sentence(number, 30) for number in range(200)]
    near = [" ".join(["omega", *text.split()[1:]]) for text in texts]
    (tmp_path / "text.txt").write_text("\n\n".join([*texts, *near]))
    data = Text(path=tmp_path / "text.txt", vocab_size=150, held_out=0.1)
    done = looked(data, on_leak="drop")
    dropped = done.found["audit"]["train_dropped"]
    assert 20 < dropped < 60  # the twins of what is held out
    before, after = data.load(progress=False), data_of(done).load(progress=False)
    assert after.facts["documents"] == before.facts["documents"] - dropped
    assert after.facts["held-out documents"] == before.facts["held-out documents"]
    assert looked(data_of(done)).found["audit"]["held_out"]["near"] > 0  # of the source


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(40):
        blocks = np.random.default_rng(number % 30).integers(0, 255, (6, 6, 3), np.uint8)
        image = Image.fromarray(blocks).resize((96, 96))
        image.crop((4, 4, 94, 94) if number >= 30 else (0, 0, 96, 96)).save(tmp_path / "pictures" / f"{number:03}.png")
    return tmp_path / "pictures"


def test_pictures_are_left_out(pictures):
    data = Images(path=pictures, resolution=64, held_out=0.4)
    done = looked(data, on_leak="drop")
    dropped, before = done.found["audit"]["train_dropped"], data.load(progress=False)
    after = data_of(done).load(progress=False)
    assert dropped > 0 and len(after.train) == len(before.train) - dropped
    assert len(after.held_out) == len(before.held_out) and after.fingerprints() != before.fingerprints()


def test_both_of_two_sets_are_looked_at(pictures):
    images = Images(resolution=64, held_out=0.4)
    done = looked(UnpairedImages(first=pictures, second=pictures, images=images), on_leak="drop")
    alone = looked(Images(path=pictures, resolution=64, held_out=0.4)).found["audit"]
    assert done.found["audit"]["train_leaking"] == 2 * alone["train_leaking"]
    assert len(data_of(done).load(progress=False).train) > 0


def make_from(runtime, *, data, weights):
    return data


def _run_of_pretraining(folder, text):
    (folder / "checkpoints").mkdir(parents=True)
    config = {"data": {"_target_": "trainkit.data.Text", "path": str(text), "field": "text"}}
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


def test_text_of_weights_that_has_moved_is_said_so(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(sentence(number) for number in range(28, 34)))
    run = _run_of_pretraining(tmp_path / "bert", text)

    def line(weights, **options):
        runtime = trainkit.Runtime(strategy="single", device="cpu", tracker=trainkit.Tracker())
        try:
            done = look(runtime, partial(make_from, data=given(tmp_path, 0), weights=weights), **options)
            return done.found["audit"]["line"]
        finally:
            runtime.close()

    assert "in the pre-training corpus" in line(run) and "not looked for" not in line(run)
    assert "not looked for" not in line(None)
    text.rename(tmp_path / "elsewhere.txt")
    moved = line(run)
    assert "\n" not in moved and "in the pre-training corpus" not in moved
    assert f"not looked for in the text of pre-training: of weights={run}, data.path={text} does not exist" in moved
    assert moved.endswith("; set audit_corpus=PATH to that text to look")
    found = line(run, audit_corpus=tmp_path / "elsewhere.txt")
    assert "in the pre-training corpus" in found and "not looked for" not in found
    (tmp_path / "theirs").mkdir()
    assert f"weights={tmp_path}/theirs is no run, which would say what it read; set audit_corpus" in line(
        tmp_path / "theirs"
    )


def _on_a_rank(folder, on_leak):
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker())
    specification = Examples(
        path=folder / "train.csv", held_out_path=folder / "test.csv"
    )  # each rank reads, none writes
    try:
        done = look(runtime, partial(make, data=specification), on_leak=on_leak)
        data = data_of(done).load().train
        batches = runtime.batches(list(range(len(data))), batch_size=4, num_steps=5)
        return done.found["audit"], [one.key() for one in data], [batch.indices.tolist() for batch in batches]
    except DataError as error:
        return str(error)
    finally:
        runtime.close()


def _setting(folder, on_leak):
    table(folder / "train.csv", range(30))
    table(folder / "test.csv", range(26, 40))
    return run_ranks(_on_a_rank, 2, folder, on_leak)


def test_two_ranks_leave_out_the_same(tmp_path):
    first, second = _setting(tmp_path, "drop")
    assert first[:2] == second[:2] and len(first[1]) == 26
    assert not {*first[2][0]} & {*second[2][0]}


def test_two_ranks_refuse_alike(tmp_path):
    first, second = _setting(tmp_path, "error")
    assert first == second and "4 of 14" in first


def test_a_file_that_cannot_be_read_ends_both(tmp_path):
    (tmp_path / "cache").write_text("no folder")
    data = Examples(path=table(tmp_path / "train.csv", range(9)))
    assert looked(data).found["audit"]["complete"]  # nothing is kept, and nothing breaks
    (tmp_path / "train.csv").write_text("other\n1\n")
    with pytest.raises(DataError, match="no column 'text'"):
        looked(data)


def test_a_resumed_run_with_drop_sees_the_same_batches(tmp_path):
    from tests.recipes.finetuning import SHAPE
    from trainkit.config import compose
    from trainkit.job import train

    given(tmp_path)
    shape = [f"recipe.model.{key}={getattr(SHAPE, key)}" for key in ("hidden_size", "num_layers", "num_heads")]
    shape += ["recipe.model.feed_forward_size=32", "recipe.model.max_length=64", "recipe.batch_size=4"]
    data = [f"data.path={tmp_path}/train.csv", f"data.held_out_path={tmp_path}/test.csv", "data.vocab_size=100"]
    common = ["recipe=bert_finetune", "strategy=single", "device=cpu", "tracking=none", "deterministic=true"]
    common += [*shape, *data, "on_leak=drop", "schedule=constant", "optimizer.lr=0.01"]

    def run(name, steps):
        return train(compose([*common, f"run_dir={tmp_path}/{name}", f"recipe.num_steps={steps}"]))

    whole = run("whole", 8)
    run("parts", 4)
    assert run("parts", 8) == whole
    result = json.loads((tmp_path / "parts" / RESULT_FILE).read_text())
    assert result["audit"]["train_dropped"] == 4 and result["step"] == 8
    with pytest.raises(ConfigError, match="train data are not those"):
        train(compose([*common, f"run_dir={tmp_path}/parts", "recipe.num_steps=9", "on_leak=warn"]))
