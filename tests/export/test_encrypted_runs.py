"""A run with encrypted checkpoints, from training to another run and to other programs."""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.encryption.keys import age_key, ssh_key
from tests.recipes.finetuning import make, reviews
from tests.recipes.test_used_elsewhere import BERT, SHORT, write_texts
from trainkit import load_recipe
from trainkit.cli.main import main
from trainkit.encryption import IDENTITY_VARIABLE, AgeReader
from trainkit.encryption.files import _IN_MEMORY, _is_in_memory

CLASSIC = ["recipe.model.positions=learned", "recipe.model.norm=post", "recipe.model.max_length=64"]
needs_memory = pytest.mark.skipif(not _is_in_memory(_IN_MEMORY), reason="needs a tmpfs at /dev/shm")


@pytest.fixture(autouse=True)
def _no_identity(monkeypatch):
    """A command is a process of its own: what one was given, the next one does not know."""
    monkeypatch.delenv(IDENTITY_VARIABLE, raising=False)
    yield
    os.environ.pop(IDENTITY_VARIABLE, None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run directory, the arguments that made it, its key, and that of somebody else."""
    folder = tmp_path_factory.mktemp("encrypted_runs")
    key, other = age_key(folder), ssh_key(folder)
    write_texts(folder / "texts")
    given = [*SHORT, *BERT, *CLASSIC, "data.vocab_size=120", "data.sequence_length=32", f"data.path={folder / 'texts'}"]
    given += [f"run_dir={folder / 'run'}", f"checkpoint.recipients=[{key.recipient},{other.recipient!r}]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINKIT_CACHE", str(folder / "cache"))
        assert main(["train", *given, "keep_best=true", "evaluate_every=2", "save_every=2"]) == 0
        yield folder / "run", given, key, other


def _files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_run_holds_no_secret_and_only_encrypted_tensors(run):
    run_dir, _, key, _ = run
    secret = key.file.read_text().split()[-1].encode()
    for name, content in _files(run_dir).items():
        assert secret not in content and str(key.file).encode() not in content, name
        assert not name.endswith(".safetensors")
    assert "identity: null" in (run_dir / "config.yaml").read_text()


def test_evaluate_needs_the_key(run, capsys):
    run_dir, _, key, other = run
    assert main(["evaluate", str(run_dir)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"is encrypted for {key.recipient}, {other.recipient}: give the file" in err
    assert main(["evaluate", str(run_dir), f"checkpoint.identity={other.file}"]) == 0
    assert "held_out_loss" in capsys.readouterr().out


def test_resume_needs_the_key_and_does_not_store_where_it_is(run, capsys):
    run_dir, given, key, _ = run
    longer = [text for text in given if not text.startswith("recipe.num_steps=")] + ["recipe.num_steps=12"]
    assert main(["train", *longer]) == 1  # with the key it works
    assert "checkpoint.identity=FILE" in capsys.readouterr().err
    assert main(["train", *longer, f"checkpoint.identity={key.file}"]) == 0
    for name, content in _files(run_dir).items():
        assert str(key.file).encode() not in content, name
    os.environ.pop(IDENTITY_VARIABLE)
    recipe = load_recipe(run_dir, [f"checkpoint.identity={key.file}"], with_data=False)
    recipe.runtime.close()


def test_another_run_starts_from_it(run, tmp_path, monkeypatch):
    run_dir, _, key, _ = run
    reviews(tmp_path / "reviews.csv")
    with pytest.raises(Exception, match="is encrypted for"):
        make(tmp_path, "classification", weights=run_dir, model=None)
    monkeypatch.setenv(IDENTITY_VARIABLE, str(key.file))
    make(tmp_path, "classification", weights=run_dir, model=None)


@needs_memory
def test_a_directory_of_hugging_face(run, tmp_path, capsys, monkeypatch):
    run_dir, _, key, other = run
    memory = TemporaryDirectory(dir=_IN_MEMORY)  # of this test alone
    monkeypatch.setattr("trainkit.encryption.files._IN_MEMORY", Path(memory.name))
    monkeypatch.setattr("trainkit.encryption.files._is_in_memory", lambda path: True)  # a mount is asked for
    own = f"checkpoint.identity={key.file}"
    assert main(["export", str(run_dir), "--to", "huggingface", str(tmp_path / "hf"), "--encrypt", own]) == 0
    assert f"encrypted for {key.recipient}, {other.recipient}: {tmp_path / 'hf'}" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "hf").iterdir()}
    assert {"config.json.age", "model.safetensors.age"} <= files and all(name.endswith(".age") for name in files)
    with AgeReader(tmp_path / "hf" / "config.json.age", other.identities) as file:
        assert json.loads(file.read(0, file.num_bytes))["model_type"] == "bert"
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert list(Path(memory.name).iterdir()) == []
    memory.cleanup()


@needs_memory
def test_an_onnx_file_for_somebody_else(run, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    run_dir, _, key, other = run
    given = ["export", str(run_dir), "--to", "onnx", str(tmp_path / "bert.onnx"), f"checkpoint.identity={key.file}"]
    assert main([*given, "--recipient", other.recipient]) == 0
    assert "for TensorRT, once decrypted: trtexec" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["bert.onnx.age"]
    with AgeReader(tmp_path / "bert.onnx.age", other.identities) as file:
        onnx.checker.check_model(onnx.load_from_string(bytes(file.read(0, file.num_bytes))))
    assert main([*given, "--recipient", other.recipient]) == 2  # it is there


def test_a_recipient_that_is_none(run, tmp_path, capsys):
    given = ["export", str(run[0]), "--to", "onnx", str(tmp_path / "x"), f"checkpoint.identity={run[2].file}"]
    assert main([*given, "--recipient", "age1nobody"]) == 2
    assert "--recipient[0]: 'age1nobody' is no recipient of age" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
