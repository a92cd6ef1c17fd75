"""Next-sentence prediction: the pairs, the mean of both losses on any split, and the way to transformers and back."""

import random
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainkit import Runtime, Schedule
from trainkit.data import Text
from trainkit.data.pairs import SentencePairs
from trainkit.data.token_file import TokenFile
from trainkit.errors import ConfigError, DataError
from trainkit.export import Export, RunFacts
from trainkit.testing import run_ranks
from trainkit_recipes.bert.finetuning.weights import architecture_of
from trainkit_recipes.bert.hugging_face import load_hugging_face, read_architecture
from trainkit_recipes.bert.model import TINY
from trainkit_recipes.bert.next_sentence import ACCURACY, LABEL, PreTrainingModel
from trainkit_recipes.bert.pretrain import MaskedLanguageModelling
from trainkit_recipes.bert.samples import masked_by

MODEL = replace(TINY, hidden_size=32, num_heads=2, feed_forward_size=64, num_segments=0, init_std=0.1, dropout=0.2)
LENGTH, NUM_STEPS = 24, 3


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """Documents of 1 to 50 words from a vocabulary of six."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "a.txt"
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    documents = [" ".join(draw.choices(words, k=draw.choice((1, 2, 7, 20, 50)))) for _ in range(80)]
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


def text(path: Path, **settings: Any) -> Text:
    return Text(path=path, vocab_size=120, sequence_length=LENGTH, held_out=0.2, **settings)


def make(
    path: Path,
    batch_size: int = 7,
    model=MODEL,
    next_sentence: bool = True,
    strategy: Any = "ddp",
    precision: Any = "fp64",
    **settings: Any,
):
    data = settings.pop("data", None) or text(path)
    return MaskedLanguageModelling(
        Runtime(precision=precision, seed=3, strategy=strategy),
        data=data,
        model=model,
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        schedule=Schedule(warmup=1, total=20),
        batch_size=batch_size,
        num_steps=NUM_STEPS,
        evaluation_batch_size=5,
        next_sentence=next_sentence,
        **settings,
    )


def train(path: Path, **settings: Any) -> tuple[dict[str, torch.Tensor], list[float], Any]:
    recipe = make(path, **settings)
    losses = []
    for batch in recipe.batches():
        losses.append(float(recipe.train_step(batch)["loss"]))
        if len(losses) == NUM_STEPS:
            break
    weights = {name: p.detach().clone() for name, p in recipe.model.module.named_parameters()}
    return weights, losses, (recipe.evaluate(), recipe.baselines())


def test_pairs_are_of_one_text_or_of_two(path, tmp_path):
    datasets = text(path, documents="pairs").load(progress=False)
    train, tokenizer = datasets.train, datasets.tokenizer
    stream = torch.from_numpy(np.fromfile(train.stream.path, train.stream.dtype).astype("int64"))
    documents = [part.tolist() for part in stream.tensor_split((stream == tokenizer.end).nonzero().squeeze(1) + 1)]
    contents = ["".join(f"<{token}>" for token in part if token != tokenizer.end) for part in documents]
    assert len(train) % 2 == 0 and len(train) > 100
    for index in range(len(train)):
        item = train[index]
        tokens = item["tokens"].tolist()
        first, second = (place for place, token in enumerate(tokens) if token == tokenizer.end)
        a, b = tokens[1:first], tokens[first + 1 : second]
        assert a and b and tokens[0] == tokenizer.start
        assert set(tokens[second + 1 :]) <= {tokenizer.pad}
        assert item["segments"].tolist() == [0] * (first + 1) + [1] * (second - first) + [0] * (LENGTH - second - 1)
        assert item[LABEL] == index % 2
        together = "".join(f"<{token}>" for token in a + b)
        if index % 2 == 0:
            assert any(together in content for content in contents)
        else:
            assert any("".join(f"<{t}>" for t in b) in content for content in contents)
    again = text(path, documents="pairs", cache_dir=tmp_path).load(progress=False).train
    assert all(torch.equal(again[3][name], value) for name, value in train[3].items())
    assert again.fingerprint == train.fingerprint


def pairs_of(tmp_path: Path, documents: list[list[int]]) -> SentencePairs:
    stream = np.array([token for document in documents for token in (*document, 3)], np.uint16)
    stream.tofile(tmp_path / "train.bin")
    settings: dict[str, Any] = {"start": 2, "end": 3, "pad": 0, "content": str(len(stream)), "cache": tmp_path}
    return SentencePairs(TokenFile(tmp_path / "train.bin", stream.dtype), LENGTH, **settings)


def test_b_of_another_document_is_any_of_them(tmp_path):
    """Each document has a token of its own; empty ones and those of one token cannot be divided."""
    train = pairs_of(tmp_path, [[5], [], *([10 + number] * (60 + 100 * number) for number in range(8)), [6]])
    items = train.__getitems__(list(range(len(train))))
    tokens, segments, labels = items["tokens"], items["segments"], items[LABEL]
    first, second = tokens[:, 1], tokens[torch.arange(len(train)), segments.argmax(1)]
    assert torch.equal((first != second).long(), labels)
    assert labels.tolist() == [0, 1] * (len(train) // 2)
    assert set(first.tolist()) == set(range(10, 18)) == set(second[1::2].tolist())
    shares = (second[1::2].bincount(minlength=18) / second[0::2].bincount(minlength=18))[10:]
    assert shares[:7].mean() == pytest.approx(1, abs=0.35)  # as many as the documents have pieces
    for row, room in zip(tokens, segments.sum(1), strict=True):
        assert int((row == 3).sum()) == 2 and room >= 2
    whole = (tokens != 0).sum(1) == LENGTH
    lengths = [segments[(labels == label) & whole].sum(1).double().mean() for label in (0, 1)]
    assert lengths[0] == pytest.approx(lengths[1], abs=1.5)  # the length of B does not tell them apart
    with pytest.raises(DataError, match=r"data\.documents=pairs: the train text is a single document"):
        pairs_of(tmp_path, [[5] * 100])


def test_no_length_says_whether_b_follows_a(tmp_path):
    """Half of the documents are short, with which a random second segment would often be shorter."""
    train = pairs_of(tmp_path, [[10 + number] * (4 if number % 2 else 21) for number in range(600)])
    items = train.__getitems__(list(range(len(train))))
    of_b = items["segments"].sum(1)
    shape = torch.stack([(items["tokens"] != 0).sum(1), of_b], dim=1)
    for place in range(2):
        values = shape[:, place]
        for value in values.unique():
            labels = items[LABEL][values == value].double()
            assert labels.mean() == pytest.approx(0.5, abs=3 * 0.5 / len(labels) ** 0.5), (place, int(value))


def test_ranks_and_micro_batches_change_nothing(path):
    """Beside one process."""
    weights, losses, measured = train(path)
    held_out = text(path, documents="pairs").load(progress=False).held_out
    share = held_out.__getitems__(list(range(len(held_out))))[LABEL].double().mean().item()
    assert measured[1][ACCURACY]["majority class"] == pytest.approx(max(share, 1 - share))
    largest = max(float(value[value > -1e3].abs().max()) for value in weights.values())
    for ranks, num_micro_batches in ((1, 3), (2, 4), (4, 2)):
        split = partial(train, grad_accumulation_steps=num_micro_batches)
        for other, other_losses, other_measured in run_ranks(split, ranks, path):
            assert max(float((other[name] - weights[name]).abs().max()) for name in weights) / largest < 1e-10
            assert other_losses == pytest.approx(losses, rel=1e-10)
            assert other_measured[0] == pytest.approx(measured[0], rel=1e-10)
            assert other_measured[1] == measured[1]


def measured(path: Path, **settings: Any) -> tuple[list[float], dict[str, float]]:
    """Losses and held-out metrics of a model without biases, of which spans are masked."""
    recipe = make(path, model=replace(MODEL, bias=False), masking="spans", **settings)
    steps = islice(recipe.batches(), NUM_STEPS)
    return [float(recipe.train_step(batch)["loss"]) for batch in steps], dict(recipe.evaluate())


@pytest.mark.parametrize(("strategy", "precision", "rel"), [("fsdp", "fp64", 1e-10), ("zero3", "fp32", 1e-5)])
def test_sharded_parameters_change_nothing(path, strategy, precision, rel):
    split = partial(measured, strategy=strategy, precision=precision, grad_accumulation_steps=2)
    losses, metrics = measured(path)
    for other_losses, other_metrics in run_ranks(split, 2, path):
        assert other_losses == pytest.approx(losses, rel=rel)
        assert other_metrics == pytest.approx(metrics, rel=rel)


def test_the_loss_is_that_of_both_tasks(path):
    recipe = make(path, model=replace(MODEL, dropout=0.0, attention_dropout=0.0))
    batch = next(recipe.batches())
    masked = masked_by(recipe.masking, batch, recipe.runtime, "mask")
    attended = batch.tokens != recipe.tokenizer.pad
    module = recipe.model.module
    with torch.no_grad():
        logits, following = module(masked.tokens_BT, masked.chosen_BK, attended, batch.segments, pairs=True)
    words = F.cross_entropy(logits.flatten(0, 1), masked.labels_BK.flatten(), reduction="sum")
    pairs = F.cross_entropy(following, batch.data[LABEL], reduction="sum")
    num_masked = int((masked.labels_BK >= 0).sum())
    expected = 2 * (words + round(0.15 * LENGTH) * pairs) / (num_masked + round(0.15 * LENGTH) * len(batch))
    assert float(recipe.train_step(batch)["loss"]) == pytest.approx(float(expected), rel=1e-12)


@torch.no_grad()
def test_transformers_computes_both_heads(path, tmp_path):
    transformers = pytest.importorskip("transformers")
    shape = replace(MODEL, positions="learned", norm="post")
    recipe = make(path, model=shape)
    export = Export(target=tmp_path / "m", destination=tmp_path / "m", run=RunFacts(name="run", step=3, position=24))
    list(recipe.exporters()["huggingface"](export))
    oracle = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "m").double().eval()
    batch = next(recipe.batches())
    attended, module = batch.tokens != recipe.tokenizer.pad, recipe.model.module.eval()
    ours, following = module(batch.tokens, None, attended, batch.segments, pairs=True)
    theirs = oracle(batch.tokens, attention_mask=attended.long(), token_type_ids=batch.segments)
    assert (theirs.seq_relationship_logits - following).abs().max() < 1e-6
    assert (theirs.prediction_logits - ours[..., : recipe.tokenizer.vocab_size])[attended].abs().max() < 1e-5
    architecture, vocab_size = read_architecture(tmp_path / "m")
    again = PreTrainingModel(architecture, vocab_size)
    load_hugging_face(again, tmp_path / "m")
    assert torch.equal(again.next_sentence.weight.double(), module.next_sentence.weight)
    assert architecture_of(recipe.state_dict()["architecture"]) == recipe.architecture
    assert recipe.architecture.pooler and recipe.architecture.num_segments == 2


def test_what_cannot_be_is_one_line(path):
    with pytest.raises(ConfigError, match=r"recipe\.next_sentence=true with data\.documents=apart: .*documents out"):
        make(path, data=text(path, documents="apart"))
    with pytest.raises(ConfigError, match=r"recipe\.model\.num_segments=1: samples have two segments; set it to 2"):
        make(path, data=text(path, documents="pairs"), model=replace(MODEL, num_segments=1), next_sentence=False)
    joined = text(path).load(progress=False)
    with pytest.raises(DataError, match=r'recipe\.next_sentence=true: samples of PackedTokens have no "segments"'):
        make(path, data=joined)
    with pytest.raises(ConfigError, match=r"pooler=true: without recipe\.next_sentence=true nothing trains it"):
        make(path, model=replace(MODEL, pooler=True), next_sentence=False)
