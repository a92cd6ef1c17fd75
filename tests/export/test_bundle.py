"""Bundles for small devices: run without PyTorch, they say what the recipe says; nothing damaged is used."""

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.encryption.keys import age_key, ssh_key
from tests.export.test_encrypted_runs import needs_memory
from tests.recipes.finetuning import make
from tests.recipes.gan import make_recipe
from tests.recipes.test_used_elsewhere import BERT, SHORT, write_texts
from trainkit import load_recipe
from trainkit.cli.main import main
from trainkit.data import Example
from trainkit.encryption import Recipient
from trainkit.errors import ConfigError
from trainkit.export import Export, RunFacts
from trainkit.export.bundle import pack
from trainkit.export.export import whole

pytest.importorskip("onnxruntime", reason="it runs what is exported")
DEVICE = Path(__file__).parents[2] / "trainkit" / "export" / "device"
FACTS = RunFacts(name="reviews", step=3, position=24, metrics={"held_out_accuracy": 0.75})
# Whatever is imported must be of Python, of onnxruntime or of numpy, or lie in the bundle.
BLOCKED = """
import importlib.abc, runpy, sys
from pathlib import Path
bundle, *allowed = sys.argv[1].split(",")
own = {path.stem for path in Path(bundle).glob("*.py")}
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        top = name.partition(".")[0]
        if top not in {*sys.stdlib_module_names, "onnxruntime", "numpy", *own, *allowed}:
            raise ModuleNotFoundError(f"{name} is not on the device", name=name)
sys.meta_path.insert(0, Blocker())
sys.path.insert(0, bundle)
sys.argv = [f"{bundle}/run.py", *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def ran(bundle: Path, text: str, *options: str, allowed: str = "", cwd: Path | None = None) -> Any:
    """The process of run.py, where other packages cannot be imported."""
    command = [sys.executable, "-B", "-c", BLOCKED, f"{bundle},{allowed}", *options]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, cwd=cwd, encoding="utf-8")


def rows_of(bundle: Path, lines: list[str], *options: str, **given: Any) -> list[dict[str, Any]]:
    done = ran(bundle, "".join(f"{line}\n" for line in lines), *options, **given)
    assert done.returncode == 0, done.stderr
    return [json.loads(row) for row in done.stdout.splitlines()]


def export(recipe: Any, destination: Path, **settings: Any) -> list[str]:
    with whole(destination) as target:
        given = Export(target=target, destination=destination, run=FACTS, **settings)
        return list(recipe.exporters()["edge"](given))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> tuple[Any, Path]:
    """A recipe, and its bundle."""
    folder = tmp_path_factory.mktemp("reviews")
    recipe = make(folder, "classification")
    export(recipe, folder / "bundle")
    return recipe, folder / "bundle"


TEXTS = ["Great FILM, naïve café!", "the plot, the 電影 and some", "awful " * 200, "x" * 150, "the film 3 [SEP] was"]


def test_a_classification_says_what_the_recipe_says(reviews):
    recipe, bundle = reviews
    examples = [*(Example.given(text) for text in TEXTS), Example.given("a lovely film", "the plot " * 40)]
    lines = [text if pair is None else f"{text}\t{pair}" for text, pair in ((e.text, e.pair) for e in examples)]
    found = rows_of(bundle, [*lines, "", "\r"], "--threads", "1")
    expected = [row for example in examples for row in recipe.predict([example])]
    for own, theirs in zip(found, expected, strict=False):
        assert own.keys() == theirs.keys() and own["prediction"] == theirs["prediction"]
        assert own["p(good)"] == pytest.approx(theirs["p(good)"], abs=1e-5)
    assert found[6:] == [{"text": "", "error": "the text has no token of the vocabulary"}] * 2 and len(found) == 8


@pytest.mark.parametrize("task", ["regression", "token_classification", "sentence_embeddings"])
def test_other_tasks_say_what_the_recipe_says(task, tmp_path):
    recipe = make(tmp_path, task)
    export(recipe, tmp_path / "bundle")
    found = rows_of(tmp_path / "bundle", TEXTS)
    expected = [row for text in TEXTS for row in recipe.predict([Example.given(text)])]
    (name,) = expected[0].keys() - {"text"}
    for own, theirs in zip(found, expected, strict=True):
        if task == "token_classification":
            assert own == theirs
        else:
            assert own[name] == pytest.approx(theirs[name], abs=2e-5)
    if task == "sentence_embeddings":
        (own,), (theirs,) = rows_of(tmp_path / "bundle", ["a\tb c"]), recipe.predict([Example.given("a", "b c")])
        assert own == {**theirs, "cosine": pytest.approx(theirs["cosine"], abs=2e-5)}


def test_answers_to_questions_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="and not question_answering: use --to onnx"):
        export(make(tmp_path, "question_answering"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_masked_words_are_those_of_fill(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))
    write_texts(tmp_path / "texts")
    given = ["data.vocab_size=120", "data.sequence_length=32", f"data.path={tmp_path / 'texts'}"]
    assert main(["train", *SHORT, *BERT, *given, f"run_dir={tmp_path / 'run'}"]) == 0
    capsys.readouterr()
    out = tmp_path / "out.zip"
    args = ["export", str(tmp_path / "run"), "--to", "edge", str(out), "--int8", "dynamic", "--max-drop", "1"]
    assert main(args) == 0
    said = capsys.readouterr().out
    assert "in int8 (dynamic)" in said and "python -m zipfile -e out.zip out; echo 'Close" in said
    assert ": out/model.onnx" in said and "out.zip/" not in said, "there is no path into a zip"
    with zipfile.ZipFile(out) as archive:
        archive.extractall(tmp_path / "int8")
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    manifest = json.loads((tmp_path / "int8" / "bundle.json").read_text())
    assert manifest["precision"] == "int8 dynamic" and {"metric", "fp32", "int8"} == manifest["measured"].keys()
    assert manifest["run"]["configuration"]["recipe"]["batch_size"] == 8
    assert main(["export", str(tmp_path / "run"), "--to", "edge", str(tmp_path / "fp32")]) == 0
    sentence = "alpha [MASK] gamma, [MASK]."
    found, *wrong = rows_of(tmp_path / "fp32", [sentence, "alpha", "[MASK] " * 600])
    recipe: Any = load_recipe(tmp_path / "run", with_data=False)
    expected = recipe.fill(sentence).predictions
    recipe.runtime.close()
    assert [[token for token, _ in mask] for mask in found["predictions"]] == [
        [t for t, _ in mask] for mask in expected
    ]
    for own, theirs in zip(found["predictions"], expected, strict=True):
        assert [share for _, share in own] == pytest.approx([share for _, share in theirs], abs=2e-6)
    assert ["write [MASK] where a word is" in row["error"] for row in wrong] == [True, True]
    assert len(rows_of(tmp_path / "int8", [sentence])[0]["predictions"]) == 2


@pytest.mark.parametrize("classes", [(), ("cat", "dog")])
def test_pictures_are_those_of_the_generator(classes, tmp_path):
    recipe = make_recipe(classes=classes)
    export(recipe, tmp_path / "bundle")
    lines = ["7\tdog", "7", "x"] if classes else ["7", "x"]
    found = rows_of(tmp_path / "bundle", lines, cwd=tmp_path)
    latents = torch.tensor(np.random.RandomState(7).randn(1, recipe.widths.latent_dim))
    labels = torch.tensor([1]) if classes else None
    with recipe.G.averaged() as module, torch.no_grad():
        pixels = module(latents, recipe.phase.fade(0), labels)[0].permute(1, 2, 0)
    expected = ((pixels + 1) * 127.5).round().clamp(0, 255).numpy()
    picture = np.array(Image.open(tmp_path / found[0]["file"]), np.float64)
    assert picture.shape == expected.shape and np.abs(picture - expected).max() <= 1 and picture.std() > 1
    assert found[-1]["error"] == "a seed must be a whole number"
    if classes:
        assert found[0]["class"] == "dog" and "one of cat, dog" in found[1]["error"]


# -- the bundle itself -------------------------------------------------------------------------------------------------


def test_a_manifest_says_what_the_bundle_is(reviews):
    _, bundle = reviews
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert {*manifest["files"]} == {path.name for path in bundle.iterdir()} - {"bundle.json"}
    assert manifest["inputs"][0] == {"name": "input_ids", "dtype": "int64", "shape": ["batch", "length"]}
    assert manifest["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 2]}]
    assert manifest["difference_to_pytorch"] < 1e-5 and manifest["license"] is None
    assert manifest["run"] | {"name": "reviews", "step": 3, "metrics": {"held_out_accuracy": 0.75}} == manifest["run"]
    assert "echo 'a text of yours' | python run.py" in (bundle / "README.md").read_text()


def test_the_same_files_give_the_same_zip(reviews, tmp_path):
    for name in ("a", "b"):
        pack(reviews[1], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with zipfile.ZipFile(tmp_path / "a") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            path.name: path.read_bytes() for path in reviews[1].iterdir()
        }


@pytest.mark.parametrize("name", ["model.onnx", "vocabulary.txt", "task.py", "labels.json"])
def test_a_damaged_file_is_not_used(name, reviews, tmp_path):
    _, bundle = reviews
    for path in bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    done = ran(tmp_path, "a\n")
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert f"{name} is damaged or was changed" in done.stderr
    (tmp_path / name).unlink()
    assert f"{name} cannot be read" in ran(tmp_path, "a\n").stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["none.txt"], "No such file or directory: 'none.txt'"),
        (["--threads", "-1"], "--threads -1: must be 1 or more"),
        (["--provider", "X"], "--provider X: this onnxruntime has"),
    ],
)
def test_wrong_options_are_one_line(options, said, reviews):
    done = ran(reviews[1], "", *options)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1


def test_other_versions_are_refused(reviews, tmp_path):
    for path in reviews[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((tmp_path / "bundle.json").read_text())
    for change, said in (
        ({"version": 2}, "has format trainkit-edge 2, and this program reads trainkit-edge 1"),
        ({"onnxruntime": "99.1"}, "is too old: pip install 'onnxruntime>=99.1'"),
        ({"format": []}, "has format [] 1, and this program reads"),
    ):
        (tmp_path / "bundle.json").write_text(json.dumps({**manifest, **change}))
        done = ran(tmp_path, "a\n")
        assert done.returncode == 1 and said in done.stderr
    (tmp_path / "bundle.json").write_text("{")
    assert "bundle.json is missing or damaged" in ran(tmp_path, "a\n").stderr


@needs_memory
def test_an_encrypted_bundle_needs_its_key(reviews, tmp_path):
    recipe, plain = reviews
    keys = [age_key(tmp_path), ssh_key(tmp_path), age_key(tmp_path, "other")]
    export(recipe, tmp_path / "bundle", recipients=tuple(Recipient.parse(key.recipient) for key in keys[:2]))
    names = {path.name for path in (tmp_path / "bundle").iterdir()}
    assert {"model.onnx.age", "vocabulary.txt.age", "labels.json.age", "age.py"} <= names
    assert not {"model.onnx", "vocabulary.txt", "labels.json"} & names
    for path in (tmp_path / "bundle").iterdir():  # the classes, a token, the name of a tensor
        assert not any(secret in path.read_bytes() for secret in (b'"good"', b"\nplot\n", b"encoder.layers"))
    expected = rows_of(plain, TEXTS)
    for key in keys[:2]:
        given = ("--identity", str(key.file))
        # `_cffi_backend` is of cryptography.
        assert rows_of(tmp_path / "bundle", TEXTS, *given, allowed="cryptography,_cffi_backend,cffi") == expected
    for options, allowed, said in (
        ((), "", "is encrypted: give --identity FILE"),
        (("--identity", str(keys[2].file)), "cryptography,_cffi_backend,cffi", "it is encrypted for another key"),
        (("--identity", str(plain / "run.py")), "cryptography,_cffi_backend,cffi", "that file holds no secret key"),
        (("--identity", str(keys[0].file)), "", "needs cryptography: pip install cryptography"),
    ):
        done = ran(tmp_path / "bundle", "a\n", *options, allowed=allowed)
        assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("path", sorted(DEVICE.glob("*.py")), ids=lambda path: path.name)
def test_programs_are_of_python_3_8(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    assert path.name == "run.py" or "annotations" in path.read_text()  # which else would be evaluated
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [node for node in calls if ast.unparse(node.func) == "zip" and node.keywords]  # `strict` is of 3.10
    assert len((DEVICE / "run.py").read_text().splitlines()) <= 30
