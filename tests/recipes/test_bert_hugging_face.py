"""Directories for transformers: what was exported computes the same there, and comes back; what comes in, too."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.present import present
from tests.recipes.test_used_elsewhere import BERT, SHORT, write_texts
from trainkit import checkpoint, load_recipe
from trainkit.checkpoint.run_directory import RunLock
from trainkit.cli.main import main
from trainkit.data import Normalizer, WordPiece
from trainkit.errors import ConfigError, DataError
from trainkit.export import Export, RunFacts
from trainkit_recipes.bert.hugging_face import (
    head_weights,
    load_hugging_face,
    read_architecture,
    require_expressible,
    write_directory,
)
from trainkit_recipes.bert.model import TINY, MaskedLanguageModel

transformers = pytest.importorskip("transformers", reason="the transformers library is the oracle")
VOCAB = 101  # padded to 128
CLASSIC = ["recipe.model.positions=learned", "recipe.model.norm=post", "recipe.model.max_length=64"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """With `texts`, a `run` on them, and what was exported of it, `theirs`."""
    folder = tmp_path_factory.mktemp("exported")
    before = os.environ.get("TRAINKIT_CACHE")
    os.environ["TRAINKIT_CACHE"] = str(folder / "cache")
    write_texts(folder / "texts", extra="Élan 中文 ")
    given = [*SHORT, *BERT, *CLASSIC, "data.vocab_size=120", "data.lowercase=false", f"data.path={folder / 'texts'}"]
    assert main(["train", *given, f"run_dir={folder / 'run'}"]) == 0
    assert main(["export", str(folder / "run"), "--to", "huggingface", str(folder / "theirs")]) == 0
    yield folder
    os.environ.pop("TRAINKIT_CACHE") if before is None else os.environ.update(TRAINKIT_CACHE=before)


def ragged(vocab_size: int, length: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens_BT and attended_BT, padded at the end."""
    tokens = torch.randint(5, vocab_size, (4, length), generator=torch.Generator().manual_seed(1))
    attended = torch.arange(length) < torch.tensor([length, length - 1, length // 2, 1])[:, None]
    return tokens.masked_fill(~attended, 0), attended


@torch.no_grad()
def farthest(model: MaskedLanguageModel, oracle: torch.nn.Module) -> float:
    """The largest difference of logits on a ragged batch, relative to the largest logit."""
    tokens, attended = ragged(model.vocab_size)
    theirs = oracle.eval()(tokens, attention_mask=attended.long()).logits
    ours = model.eval()(tokens, attended_BT=attended)[..., : model.vocab_size]
    assert ours.shape == theirs.shape
    return float((ours - theirs)[attended].abs().max() / theirs.abs().max())


# -- out ---------------------------------------------------------------------------------------------------------------


def test_transformers_computes_what_the_run_does(folder):
    recipe: Any = load_recipe(folder / "run", ["ops=reference"], with_data=False)
    module, tokenizer = recipe.model.module, recipe.tokenizer
    oracle = transformers.AutoModelForMaskedLM.from_pretrained(folder / "theirs")
    assert type(oracle) is transformers.BertForMaskedLM and oracle.dtype == torch.float32
    assert oracle.config.vocab_size == tokenizer.vocab_size < len(module.encoder.embeddings.token.weight)
    assert oracle.cls.predictions.decoder.weight is oracle.bert.embeddings.word_embeddings.weight
    assert farthest(module, oracle) < 1e-6
    encoder = transformers.AutoModel.from_pretrained(folder / "theirs")
    tokens, attended = ragged(tokenizer.vocab_size)
    with torch.no_grad():
        hidden = encoder.eval()(tokens, attended.long()).last_hidden_state - module.encoder(tokens, attended)
    assert hidden[attended].abs().max() < 1e-6

    theirs = transformers.AutoTokenizer.from_pretrained(folder / "theirs")
    sentence = "Élan, alpha[MASK] 中文beta  unknownword"
    ours = [tokenizer.start, *tokenizer.encode(sentence), tokenizer.end]
    assert theirs(sentence)["input_ids"] == ours and tokenizer.unknown in ours and tokenizer.mask in ours
    pair = theirs("alpha", "beta gamma")
    first, second = tokenizer.encode("alpha"), tokenizer.encode("beta gamma")
    assert pair["input_ids"] == [tokenizer.start, *first, tokenizer.end, *second, tokenizer.end]
    assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert theirs.model_max_length == 64 and theirs.pad_token_id == tokenizer.pad and len(theirs) == num_tokens(folder)
    slow = transformers.BertTokenizer(vocab=str(folder / "theirs" / "vocab.txt"), do_lower_case=False)
    assert slow(sentence)["input_ids"] == ours
    recipe.runtime.close()


def num_tokens(folder: Path) -> int:
    return len((folder / "theirs" / "vocab.txt").read_text().splitlines())


def test_the_card_has_the_numbers_of_the_run(folder):
    card = (folder / "theirs" / "README.md").read_text()
    manifest = checkpoint.read_manifest(checkpoint.find(folder / "run"))
    accuracy = manifest["values"]["metrics"]["held_out_accuracy"]
    baselines = manifest["values"]["facts"]["baselines"]["held_out_accuracy"]
    assert f"| held\\_out\\_accuracy | **{accuracy:.4g}** |" in card
    assert f"| held\\_out\\_accuracy of: two-sided neighbours | {baselines['two-sided neighbours']:.4g} |" in card
    assert "documents" in card and card.index("**The model ") < card.index("AutoModelForMaskedLM")
    assert "| steps | 3 |" in card and "| samples | 24 |" in card and f"| torch | {torch.__version__} |" in card
    assert "path: texts" in card and str(folder) not in card and "No license is stated" in card


def test_transformers_trains_what_was_exported(folder):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "theirs", num_labels=3).train()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "theirs")
    batch = tokenizer(["alpha beta", "gamma delta epsilon", "zeta"], ["eta", "theta", "alpha"], padding=True)
    batch = {name: torch.tensor(value) for name, value in batch.items()}
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(4):
        loss = model(**batch, labels=torch.tensor([0, 1, 2])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_there_and_back_again(folder, tmp_path):
    """trainkit -> Hugging Face -> trainkit -> Hugging Face, the second run with `weights` alone."""
    run = ["recipe.num_steps=1", "optimizer.lr=0", "optimizer.weight_decay=0", f"run_dir={tmp_path / 'run'}"]
    given = [
        *SHORT,
        "recipe=bert",
        "data.held_out=0.1",
        f"data.path={folder / 'texts'}",
        f"weights={folder / 'theirs'}",
    ]
    assert main(["train", *given, *run, "recipe.batch_size=4"]) == 0
    assert main(["export", str(tmp_path / "run"), "--to", "huggingface", str(tmp_path / "again")]) == 0
    first, second = (load_file(place / "model.safetensors") for place in (folder / "theirs", tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_text() == (folder / "theirs" / name).read_text()


def test_a_run_goes_on_when_its_weights_are_gone(folder, tmp_path):
    shutil.copytree(folder / "theirs", tmp_path / "theirs")
    texts, weights = f"data.path={folder / 'texts'}", f"weights={tmp_path / 'theirs'}"
    given = [*SHORT, "recipe=bert", "data.held_out=0.1", texts, weights, "recipe.batch_size=4", "schedule=constant"]
    assert main(["train", *given, f"run_dir={tmp_path / 'run'}", "recipe.num_steps=1"]) == 0
    shutil.rmtree(tmp_path / "theirs")
    assert main(["train", *given, f"run_dir={tmp_path / 'run'}", "recipe.num_steps=2"]) == 0
    assert main(["train", *given, f"run_dir={tmp_path / 'another'}", "recipe.num_steps=2"]) == 2, "a new run needs them"
    values = checkpoint.read_manifest(checkpoint.find(tmp_path / "run"))["values"]
    assert values["step"] == 2 and values["config"]["recipe"]["model"]["hidden_size"] == 16


def write(model: MaskedLanguageModel, directory: Path) -> None:
    """Exports a model whose tokenizer has the special tokens and a last one: its other numbers are no token."""
    numbers = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    write_directory(
        Export(target=directory, destination=directory, run=RunFacts(name="run", step=3, position=24)),
        model.encoder,
        WordPiece.from_vocabulary({**numbers, "last": VOCAB - 1}, Normalizer()),
        model_class="BertForMaskedLM",
        head=head_weights(model.head.state_dict(), VOCAB),
        text="",
        pipeline_tag="fill-mask",
    )


@torch.no_grad()
@pytest.mark.parametrize("num_segments", [0, 1])
def test_a_pair_is_computed_without_segments_of_its_own(tmp_path, num_segments):
    model = fresh(num_segments=num_segments).eval()
    write(model, tmp_path / "written")
    oracle = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "written").eval()
    tokens, _ = ragged(VOCAB)
    theirs = oracle(tokens, token_type_ids=torch.ones_like(tokens)).logits
    assert (model(tokens)[..., :VOCAB] - theirs).abs().max() < 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("settings", [{}, {"tied_decoder": False, "num_segments": 3, "pooler": True}])
def test_every_shape_is_written_as_it_is_read(tmp_path, settings):
    model, written = fresh(**settings), tmp_path / "written"
    write(model, written)
    architecture, vocab_size = read_architecture(written)
    assert vocab_size == VOCAB
    assert architecture == replace(model.encoder.architecture, pooler=True)
    oracle = transformers.AutoModelForMaskedLM.from_pretrained(written)
    assert farthest(model, oracle) < 1e-6
    again = MaskedLanguageModel(replace(architecture, pooler=settings.get("pooler", False)), VOCAB)
    load_hugging_face(again, written)
    before, after = model.state_dict(), again.state_dict()
    assert all(torch.equal(before[name][:VOCAB], after[name][:VOCAB]) for name in before)
    assert len(transformers.AutoTokenizer.from_pretrained(written)) <= VOCAB


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"tied_decoder": False, "pooler": True}])
def test_no_biases_are_written_as_zeros(tmp_path, settings):
    """What comes back has biases of zero, and computes the same."""
    model, written = fresh(bias=False, **settings), tmp_path / "written"
    write(model, written)
    oracle = transformers.AutoModelForMaskedLM.from_pretrained(written)
    assert farthest(model, oracle) < 1e-6
    architecture, _ = read_architecture(written)
    assert architecture.bias
    again = MaskedLanguageModel(replace(architecture, pooler=settings.get("pooler", False)), VOCAB).eval()
    load_hugging_face(again, written)
    before, after = model.state_dict(), again.state_dict()
    assert all(torch.equal(before[name][:VOCAB], after[name][:VOCAB]) for name in before)
    assert not any(after[name].any() for name in after.keys() - before.keys())
    tokens, _ = ragged(VOCAB)
    assert torch.allclose(model.eval()(tokens)[..., :VOCAB], again(tokens)[..., :VOCAB], atol=1e-5)


@pytest.mark.parametrize("change", [{"positions": "relative"}, {"positions": "rotary"}, {"norm": "pre"}])
def test_what_cannot_be_expressed_is_one_line(change):
    ((name, value),) = change.items()
    with pytest.raises(ConfigError, match=rf"recipe\.model\.{name}={value} cannot be .* export with --to onnx"):
        require_expressible(replace(TINY, **change))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--to", "hugingface", "new"], "exports to huggingface, onnx.*Did you mean 'huggingface'"),
        (["--to", "huggingface", "theirs"], "exists already"),
        (["--to", "huggingface", "new", "--averaged"], "keeps no averaged weights"),
        (["--to", "huggingface", "new", "recipe.batch_sice=2"], "no key 'recipe.batch_sice'"),
    ],
)
def test_an_export_that_cannot_be_is_one_line(folder, given, says, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["export", "run", *given]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(says, said), said
    assert sorted(path.name for path in folder.iterdir()) == ["cache", "run", "texts", "theirs"]


def test_a_run_that_is_still_training_is_not_exported(folder, tmp_path, capsys):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    lock = RunLock(run)
    assert main(["export", str(run), "--to", "huggingface", str(tmp_path / "out")]) == 2
    step = run / "checkpoints" / "step_00000003"
    said = capsys.readouterr().err
    assert f"is being trained by process {os.getpid()} on " in said and f"such as {step}\n" in said
    assert main(["export", str(step), "--to", "huggingface", str(tmp_path / "out")]) == 0
    lock.release()


# -- in ----------------------------------------------------------------------------------------------------------------


def fresh(**settings: Any) -> MaskedLanguageModel:
    torch.manual_seed(0)
    model = MaskedLanguageModel(replace(TINY, dropout=0.0, attention_dropout=0.0, **settings), VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.head.bias[VOCAB:] = -1e4
    return model


def saved(directory: Path, kind: str = "Bert", **settings: Any) -> Any:
    """A model for masked words of transformers, saved."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = getattr(transformers, f"{kind}Config")(vocab_size=VOCAB, **{**shape, **settings})
    model = getattr(transformers, f"{kind}ForMaskedLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return model


def load(directory: Path) -> MaskedLanguageModel:
    model = MaskedLanguageModel(*read_architecture(directory))
    load_hugging_face(model, directory)
    return model


def as_bin(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def in_shards(directory: Path) -> None:
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    files = {name: f"model-{number % 2 + 1:05}-of-00002.safetensors" for number, name in enumerate(state)}
    for file in set(files.values()):
        save_file({name: state[name] for name in state if files[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def as_bin_in_shards(directory: Path) -> None:
    in_shards(directory)
    index = directory / "model.safetensors.index.json"
    for path in directory.glob("*.safetensors"):
        torch.save(load_file(path), directory / f"{path.stem}.bin")
        path.unlink()
    (directory / "pytorch_model.bin.index.json").write_text(index.read_text().replace(".safetensors", ".bin"))
    index.unlink()


@pytest.mark.parametrize(
    ("kind", "settings", "change"),
    [
        ("Bert", {}, None),
        ("Bert", {"tie_word_embeddings": False}, None),
        ("Bert", {"tie_word_embeddings": False, "type_vocab_size": 1}, as_bin),
        ("Bert", {}, in_shards),
        ("Bert", {}, as_bin_in_shards),
        ("Roberta", {"pad_token_id": 0, "max_position_embeddings": 40}, None),
        ("Roberta", {"pad_token_id": 0, "tie_word_embeddings": False, "type_vocab_size": 1}, in_shards),
    ],
    ids=["plain", "untied", "untied-bin", "shards", "bin-shards", "roberta", "roberta-untied"],
)
def test_logits_of_imports_equal_transformers(tmp_path, kind, settings, change):
    oracle = saved(tmp_path, kind, **settings)
    if change is not None:
        change(tmp_path)
    model = load(tmp_path)
    assert (model.head.decoder is None) == settings.get("tie_word_embeddings", True)
    assert farthest(model, oracle) < 1e-6
    assert (model(ragged(VOCAB)[0]).softmax(-1)[..., VOCAB:] == 0).all()


def test_a_file_in_bf16_and_an_encoder_alone(tmp_path):
    oracle = saved(tmp_path).to(torch.bfloat16)
    oracle.save_pretrained(tmp_path)
    assert farthest(load(tmp_path), oracle.float()) < 1e-6
    oracle.bert.save_pretrained(tmp_path / "bare")  # names without `bert.`
    shutil.copy(tmp_path / "config.json", tmp_path / "bare")
    model = fresh(hidden_size=32, feed_forward_size=64)
    before = model.head.dense.weight.clone()
    load_hugging_face(model, tmp_path / "bare")
    assert torch.equal(model.head.dense.weight, before)
    load_hugging_face(model.encoder, tmp_path)  # an encoder takes no head
    position = present(model.encoder.embeddings.position)
    assert torch.equal(position.weight, oracle.bert.embeddings.position_embeddings.weight)


class Touches:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_that_cannot_be_read_are_one_line(tmp_path):
    saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "good")
    with pytest.raises(DataError, match=r"has no model\.safetensors and no pytorch_model\.bin"):
        load(tmp_path)
    torch.save({"weight": Touches(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be read without running code from it"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()
    for content in (b"", b"no pickle", (tmp_path / "good").read_bytes()):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(DataError, match=r"pytorch_model\.bin cannot be read") as error:
            load(tmp_path)
        assert "\n" not in str(error.value)
    torch.save([1], tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="holds no weights by name"):
        load(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    (tmp_path / "pytorch_model.bin").unlink()
    for content, says in [
        ("{", "is no index of weights"),
        ('{"weight_map": {"a": "../good"}}', r"names \.\./good, which is not beside it"),
        ('{"weight_map": {"a": "good"}}', "names the weight 'a', which good does not have"),
    ]:
        index.write_text(content)
        with pytest.raises(DataError, match=says):
            load(tmp_path)


# -- in, by configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["recipe.model.num_layers=3"], r"has num_layers=1: set recipe\.model\.num_layers to it \(here it is 3\)"),
        (["data.lowercase=true"], r"data\.lowercase=True, and .* was trained with lowercase=False"),
        (["data.vocab_file={vocab}"], r"was trained with \d+ tokens and the data have 7: .* give data\.vocab_file="),
        (["weights={empty}"], r"has no config\.json"),
        (["recipe=progressive_gan"], r"theirs holds no complete trainkit checkpoint"),
    ],
)
def test_what_contradicts_the_weights_is_one_line(folder, tmp_path, typed, says, capsys):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nalpha\nbeta\n")
    given = [
        *SHORT,
        "recipe=bert",
        "data.held_out=0.1",
        f"data.path={folder / 'texts'}",
        f"weights={folder / 'theirs'}",
    ]
    typed = [text.format(vocab=tmp_path / "vocab.txt", empty=tmp_path) for text in typed]
    capsys.readouterr()
    is_checkpoint = "recipe=progressive_gan" in typed  # which may be there the next time
    assert main(["train", *given, *typed, f"run_dir={tmp_path / 'run'}"]) == (1 if is_checkpoint else 2)
    said = capsys.readouterr().err
    assert said.count("error") == 1 and re.search(says, said), said


def test_an_experiment_takes_its_shape_from_weights(folder, capsys):
    typed = ["experiment=bert_base", f"recipe.weights={folder / 'theirs'}", "recipe.model.dropout=0.2"]
    assert main(["train", "--print-config", *typed]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    model = config["recipe"]["model"]
    assert (model["num_layers"], model["hidden_size"], model["max_length"], model["dropout"]) == (1, 16, 64, 0.2)
    assert config["data"]["vocab_file"] == str(folder / "theirs" / "vocab.txt")
    assert config["schedule"]["warmup"] == 10000
