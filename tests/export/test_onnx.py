"""ONNX files: equal to PyTorch at every size, int8 with an accuracy that is true, and whole or not there."""

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.present import present
from tests.recipes.finetuning import make
from tests.recipes.test_used_elsewhere import BERT, GAN, SHORT, write_pictures, write_texts
from trainkit import load_recipe
from trainkit.cli.main import main
from trainkit.data import Normalizer, WordPiece
from trainkit.errors import ConfigError
from trainkit.export import Dynamic, Export, OnnxModel, RunFacts, predictor, write_onnx
from trainkit.export.export import whole
from trainkit_recipes.bert.finetuning.onnx_model import inputs_of, onnx_model
from trainkit_recipes.bert.model import TINY, MaskedLanguageModel
from trainkit_recipes.bert.onnx_model import WithLogits, text_inputs

onnxruntime = pytest.importorskip("onnxruntime", reason="it runs what is exported")
FACTS = RunFacts(name="run", step=3, position=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """With two runs, `bert` (relative positions) and `faces` (a GAN in a fade), and `bert.onnx` of the first."""
    folder = tmp_path_factory.mktemp("onnx")
    before = os.environ.get("TRAINKIT_CACHE")
    os.environ["TRAINKIT_CACHE"] = str(folder / "cache")
    write_texts(folder / "texts")
    learn = ["recipe.num_steps=80", "optimizer.lr=0.01", "data.vocab_size=120", "data.sequence_length=32"]
    given = [*SHORT, *BERT, *learn, f"data.path={folder / 'texts'}", f"run_dir={folder / 'bert'}"]
    assert main(["train", *given]) == 0
    assert main(["export", str(folder / "bert"), "--to", "onnx", str(folder / "bert.onnx")]) == 0
    yield folder
    os.environ.pop("TRAINKIT_CACHE") if before is None else os.environ.update(TRAINKIT_CACHE=before)


def written(tmp_path: Path, model: OnnxModel, *, max_inline_bytes: int = 1 << 31, **settings) -> list[str]:
    """The lines of an export to tmp_path/m.onnx."""
    with whole(tmp_path / "m.onnx") as target:
        export = Export(target=target, destination=tmp_path / "m.onnx", run=FACTS, **settings)
        return list(write_onnx(model, export, max_inline_bytes=max_inline_bytes))


def ragged(num_samples: int, length: int, vocab_size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(5, vocab_size, (num_samples, length), generator=generator)
    lengths = torch.randint(1, length + 1, (num_samples, 1), generator=generator)
    attended = torch.arange(length) < lengths
    return {"input_ids": tokens.masked_fill(~attended, 0), "attention_mask": attended.long()}


# -- BERT --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_file_equals_pytorch_at_every_size(folder):
    predict = predictor(folder / "bert.onnx")
    recipe: Any = load_recipe(folder / "bert", with_data=False)
    model, num_tokens = recipe.model.module.eval(), recipe.tokenizer.vocab_size
    recipe.runtime.close()
    for num_samples, length in [
        (1, 1),
        (64, 1),
        (1, 2),
        (64, 7),
        (5, 31),
        (64, 32),
        (3, 100),
        (2, 511),
        (1, 512),
        (64, 512),
    ]:
        inputs = ragged(num_samples, length, num_tokens)
        (found,) = predict(inputs)
        expected = model(inputs["input_ids"], attended_BT=inputs["attention_mask"].bool())[..., :num_tokens]
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max(), (num_samples, length)


def test_a_file_says_what_it_is(folder):
    session = onnxruntime.InferenceSession(folder / "bert.onnx")
    held = session.get_modelmeta().custom_metadata_map
    tokens = held["vocabulary"].split("\n")
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] and json.loads(held["do_lower_case"]) is True
    assert (held["run"], held["step"], held["samples"], held["max_length"]) == ("bert", "80", "640", "512")
    assert {"trainkit", "torch"} <= held.keys()
    assert [node.name for node in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert session.get_inputs()[0].shape == ["batch", "length"]
    assert session.get_outputs()[0].shape == ["batch", "length", len(tokens)]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_accuracy_of_int8_is_true(folder, kind, capsys):
    path = folder / f"{kind}.onnx"
    capsys.readouterr()
    given = ["export", str(folder / "bert"), "--to", "onnx", str(path), "--int8", kind, "--max-drop", "0.2"]
    assert main(given) == 0
    said = present(
        re.search(
            r"accuracy (\S+) in fp32 and (\S+) in int8 \((\w+)\); ([\d,]+) and ([\d,]+) bytes",
            capsys.readouterr().out,
        )
    )
    assert said[3] == kind and int(said[5].replace(",", "")) < 0.7 * int(said[4].replace(",", ""))
    recipe: Any = load_recipe(folder / "bert")
    assert "vocabulary" in onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    evaluated, predict = recipe.evaluate()["held_out_accuracy"], predictor(path)
    assert evaluated > 0.05 and float(said[1]) == pytest.approx(evaluated, abs=1e-4)
    correct, total = 0, 0
    for batch, masked in recipe.masked_held_out():
        for row in range(len(batch)):
            tokens = masked.tokens_BT[row : row + 1]
            inputs = {"input_ids": tokens, "attention_mask": (tokens != recipe.tokenizer.pad).long()}
            predicted = predict(inputs)[0].argmax(-1)[0, masked.chosen_BK[row]]
            correct += int((predicted == masked.labels_BK[row]).sum())
            total += int((masked.labels_BK[row] >= 0).sum())
    recipe.runtime.close()
    # Activations of int8 have one scale in a batch, so that other batches round differently.
    assert float(said[2]) == pytest.approx(correct / total, abs=0.03)


def test_segments_and_weights_beside_the_file(tmp_path):
    torch.manual_seed(0)
    shape = replace(TINY, hidden_size=16, feed_forward_size=16, max_length=40, bias=False)
    model = MaskedLanguageModel(shape, 101).eval()
    with torch.no_grad():
        present(model.encoder.embeddings.segment).weight.mul_(50)
    numbers = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    tokenizer = WordPiece.from_vocabulary({**numbers, "last": 100}, Normalizer())
    parts = text_inputs(model.encoder.architecture, tokenizer)
    lines = written(tmp_path, OnnxModel(module=WithLogits(model), outputs=("logits",), **parts), max_inline_bytes=0)
    assert any(line.endswith("m.onnx, with m.onnx.data beside it") for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx.data").stat().st_size > 8000
    inputs = {**ragged(3, 40, 101), "token_type_ids": (torch.arange(40) > 10).long().expand(3, -1)}
    (found,) = predictor(tmp_path / "m.onnx")({name: value.contiguous() for name, value in inputs.items()})
    with torch.no_grad():
        expected = model(inputs["input_ids"], None, inputs["attention_mask"].bool(), inputs["token_type_ids"])
    assert (found - expected[..., :101]).abs().max() < 1e-5 * expected[..., :101].abs().max()


@torch.no_grad()
def test_a_drop_of_a_regression_is_of_the_variance_it_predicts(tmp_path):
    """And so the same for targets of any unit."""
    recipe = make(tmp_path, "regression")
    model = onnx_model(recipe, recipe.model.module)
    module = model.module.eval()
    measured = present(model.measure)(lambda inputs: [module(*inputs.values())])
    evaluated = recipe.evaluate()
    truth = recipe.datasets.held_out.targets["labels"]
    assert model.measured == "held_out_r2"
    assert measured == pytest.approx(1 - evaluated["held_out_mse"] / float(truth.var(correction=0)), abs=1e-9)


@pytest.mark.parametrize("task", ["classification", pytest.param("sentence_embeddings", marks=pytest.mark.nightly)])
@torch.no_grad()
def test_a_fine_tuned_model(tmp_path, task):
    """Beside what the recipe computes of documents without padding, and its own metric."""
    recipe = make(tmp_path, task, lora_rank=2 if task == "classification" else None)
    for name, parameter in recipe.model.module.named_parameters():
        if "lora_B" in name:  # peft's are zero at first
            parameter.normal_(std=0.3)
    evaluated, metric = recipe.evaluate(), recipe.task.score
    (tmp_path / "out").mkdir()
    with whole(tmp_path / "out" / "m.onnx") as target:
        export = Export(target=target, destination=target, run=FACTS, int8="dynamic", max_drop=1.0)
        lines = list(recipe.exporters()["onnx"](export))
    assert f"{metric} {evaluated[metric]:.4f} in fp32" in lines[1]
    predict = predictor(tmp_path / "out" / "m.onnx")
    batch = next(recipe.runtime.evaluation_batches(recipe.datasets.held_out, batch_size=4))
    found = predict(inputs_of(batch.tokens, batch.lengths, batch.data.get("firsts"), True))[0]
    module = recipe.model.module.eval()
    expected = module(batch.tokens, batch.lengths, batch.positions, batch.data.get("firsts"))
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()  # 8 bits


# -- the GAN -----------------------------------------------------------------------------------------------------------


def test_a_generator_at_the_fade_of_its_checkpoint(folder):
    write_pictures(folder / "pictures")
    in_a_fade = ["recipe.fade_images=64", "save_every=4", "keep_last=9"]
    given = [*SHORT, *GAN, *in_a_fade, f"data.path={folder / 'pictures'}", f"run_dir={folder / 'faces'}"]
    assert main(["train", *given]) == 0
    step = folder / "faces" / "checkpoints" / "step_00000004"
    assert main(["export", str(step), "--to", "onnx", str(folder / "generator.onnx")]) == 0
    assert main(["export", str(step), "--to", "onnx", str(folder / "trained.onnx"), "--no-averaged"]) == 0
    recipe: Any = load_recipe(step, with_data=False)
    fade = recipe.phase.fade(recipe.runtime.position)
    assert 0 < fade < 1 and recipe.phase.resolution == 8
    latents = torch.randn(7, 8, generator=torch.Generator().manual_seed(0))
    (trained,) = predictor(folder / "trained.onnx")({"latents": latents})
    (found,) = predictor(folder / "generator.onnx")({"latents": latents})
    with torch.no_grad():
        expected = recipe.G.module(latents, fade)
    assert (trained - expected).abs().max() < 1e-4 * expected.abs().max()
    with torch.no_grad(), recipe.G.averaged() as module:
        expected = module(latents, fade)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (found - trained).abs().max() > 1e-3 * expected.abs().max()
    recipe.runtime.close()


# -- refused -----------------------------------------------------------------------------------------------------------


class Line(nn.Module):
    """What is exported, and called later, adds 0 and then 1."""

    def __init__(self, is_steady: bool = True) -> None:
        super().__init__()
        self.layer, self.is_steady, self.num_calls = nn.Linear(4, 4), is_steady, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        offset = 0.0 if self.is_steady or torch.compiler.is_exporting() else 1.0
        return self.layer(x) + offset


def line(**settings) -> OnnxModel:
    inputs = {"x": torch.randn(2, 4)}
    given = {"module": Line(), "outputs": ("y",), "dynamic": {"x": {0: Dynamic("batch", 16)}}, "checks": [], **settings}
    return OnnxModel(inputs=inputs, **given)


def test_a_file_that_differs_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"onnxruntime differs from PyTorch by .* for x \[2, 4\]"):
        written(tmp_path, line(module=Line(is_steady=False)))
    assert [*tmp_path.iterdir()] == []


def test_int8_that_loses_too_much_is_not_there(tmp_path):
    measured = iter([0.5, 0.4, 0.5, 0.4])
    model = line(measure=lambda predict: next(measured), calibration=lambda: [{"x": torch.randn(2, 4)}])
    with pytest.raises(
        ConfigError, match=r"0\.5000 in fp32 and 0\.4000 in int8 .* above --max-drop 0\.05, and nothing"
    ):
        written(tmp_path, model, int8="static", max_drop=0.05)
    assert [*tmp_path.iterdir()] == []
    assert (
        "accuracy 0.5000 in fp32 and 0.4000 in int8 (dynamic)"
        in written(tmp_path, model, int8="dynamic", max_drop=0.11)[1]
    )
    with pytest.raises(ConfigError, match="--int8 static: this model has no accuracy"):
        written(tmp_path / "other", line(), int8="static")


def test_trtexec_is_asked_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "trtexec"
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for code, says in ((0, "trtexec built an engine"), (3, "trtexec failed: no parser")):
        program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/given\necho no parser\nexit {code}\n')
        program.chmod(0o755)
        lines = written(tmp_path / str(code), line())
        assert lines[-1].endswith(says)
        shapes = "--minShapes=x:1x4 --optShapes=x:2x4 --maxShapes=x:16x4"
        assert (
            lines[-2]
            == f"for TensorRT: trtexec --onnx={tmp_path / str(code) / 'm.onnx'} {shapes} --saveEngine=model.engine"
        )
        assert f"{shapes} --skipInference" in (tmp_path / "given").read_text()


def test_missing_packages_are_one_line(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(folder / "bert"), "--to", "onnx", str(folder / "new.onnx")]) == 2
    assert "--to onnx needs onnxruntime: pip install 'trainkit[onnx]'" in capsys.readouterr().err
    assert main(["export", str(folder / "bert"), "--to", "huggingface", str(folder / "new"), "--int8", "static"]) == 2
    assert "--int8 static is for --to onnx" in capsys.readouterr().err
    given = ["export", str(folder / "bert"), "--to", "onnx", str(folder / "new.onnx"), "--max-drop"]
    assert main([*given, "-1", "--int8", "static"]) == 2
    assert "--max-drop=-1.0: must be 0 or more" in capsys.readouterr().err
    assert main([*given, "0.1"]) == 2
    assert "--max-drop 0.1 is for --int8, which is not given: leave it out" in capsys.readouterr().err
    assert not list(folder.glob("new*"))


def test_a_file_that_is_lost_while_it_is_read_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), whole(tmp_path / "out"):
        Path("/nowhere/data.bin").read_bytes()
    with pytest.raises(ConfigError, match=r"out cannot be written: No such file"), whole(tmp_path / "out") as path:
        (path / "without its folder").write_text("")
    assert [*tmp_path.iterdir()] == []
