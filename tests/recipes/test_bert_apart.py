"""Training on documents that do not see one another: with and without padding alike, on any number of ranks."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainkit import Runtime, Schedule
from trainkit.data import Text
from trainkit.errors import ConfigError, DataError
from trainkit.testing import run_ranks
from trainkit_recipes.bert.model import TINY
from trainkit_recipes.bert.pretrain import MaskedLanguageModelling
from trainkit_recipes.bert.samples import masked_by, samples_of

MODEL = replace(TINY, hidden_size=32, num_heads=2, feed_forward_size=64, num_segments=0, init_std=0.1)
EVERYTHING = 0  # as a batch size: all training documents


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    draw = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    path = tmp_path_factory.mktemp("text") / "a.txt"
    documents = [" ".join(draw.choices(words, k=draw.choice((1, 2, 7, 7, 20, 50)))) for _ in range(60)]
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


def make(
    path: Path, form: Any, model=MODEL, batch_size: int = EVERYTHING, compile: bool = False, **settings: Any
) -> MaskedLanguageModelling:
    data = Text(path=path, vocab_size=120, sequence_length=24, held_out=0.1, documents=form)
    size = batch_size or len(data.load(progress=False).train)
    return MaskedLanguageModelling(
        Runtime(precision="fp64", seed=3, compile=compile),
        data=data,
        model=model,
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        schedule=Schedule(warmup=1, total=20),
        batch_size=size,
        num_steps=3,
        evaluation_batch_size=5,
        **settings,
    )


def train(path: Path, form: Any, model=MODEL, **settings: Any) -> tuple[dict[str, torch.Tensor], list[float], Any]:
    """Weights and losses of three steps, and held-out metrics."""
    recipe = make(path, form, model, **settings)
    losses = []
    for batch in recipe.batches():
        losses.append(float(recipe.train_step(batch)["loss"]))
        if len(losses) == 3:
            break
    weights = {name: p.detach().clone() for name, p in recipe.model.module.named_parameters()}
    return weights, losses, recipe.evaluate()


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    largest = max(float(value[value > -1e3].abs().max()) for value in theirs.values())
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) / largest


@pytest.mark.parametrize(
    ("changes", "masking"),
    [
        ({"positions": "learned", "norm": "post", "dropout": 0.2, "attention_dropout": 0.2}, "tokens"),
        ({"positions": "rotary", "norm": "pre", "dropout": 0.0, "attention_dropout": 0.2}, "tokens"),
        ({"positions": "relative", "norm": "pre", "dropout": 0.0, "attention_dropout": 0.0}, "words"),
        ({"positions": "alibi", "norm": "post", "dropout": 0.2, "attention_dropout": 0.0}, "spans"),
    ],
    ids=lambda value: value["positions"] if isinstance(value, dict) else value,
)
def test_padding_changes_neither_masks_nor_losses_nor_weights(path, changes, masking):
    model = replace(MODEL, **changes)
    weights, losses, metrics = train(path, "apart", model, masking=masking)
    padded_weights, padded_losses, padded_metrics = train(path, "padded", model, masking=masking)
    assert losses == pytest.approx(padded_losses, rel=1e-10)
    assert distance(weights, padded_weights) < 1e-10
    assert metrics == pytest.approx(padded_metrics, rel=1e-10)


@pytest.mark.parametrize(("form", "masking"), [("apart", "spans"), ("padded", "tokens"), ("joined", "words")])
def test_ranks_and_micro_batches_change_nothing(path, form, masking):
    model = replace(MODEL, dropout=0.2)
    weights, losses, metrics = train(path, form, model, batch_size=7, masking=masking)
    for num_micro_batches in (1, 4):  # ranks with empty micro-batches, too
        split = partial(train, batch_size=7, grad_accumulation_steps=num_micro_batches, masking=masking)
        for other, other_losses, other_metrics in run_ranks(split, 2, path, form, model):
            assert distance(other, weights) < 1e-10
            assert other_losses == pytest.approx(losses, rel=1e-10)
            assert other_metrics == pytest.approx(metrics, rel=1e-10)


def test_a_document_has_new_masks_in_every_epoch(path):
    recipe = make(path, "apart")
    seen = []
    for batch in recipe.batches():
        samples = samples_of(batch, recipe.datasets.train, recipe.tokenizer.pad)
        masked = masked_by(recipe.masking, samples.batch, recipe.runtime, "mask")
        numbers = (samples.batch.positions % recipe.datasets.train.num_documents).argsort()
        seen.append((samples.batch.tokens[numbers], masked.tokens_BT[numbers]))
        if len(seen) == 2:
            break
    (first, first_masked), (second, second_masked) = seen
    assert torch.equal(first, second) and not torch.equal(first_masked, second_masked)


def test_the_report_shows_documents(path):
    recipe = make(path, "apart", batch_size=4)
    report = recipe.report()
    assert "[" in report.examples and report.rows[0][0] == "model"


def test_what_cannot_be_is_one_line(path, monkeypatch):
    with pytest.raises(ConfigError, match=r"sequence_length=24 is more than recipe\.model\.max_length=16"):
        make(path, "padded", replace(MODEL, max_length=16))
    batch: Any = SimpleNamespace(data={"tokens": torch.zeros(1, 4), "documents": torch.zeros(1, 4)})
    with pytest.raises(DataError, match=r"needs the attribute num_documents"):
        samples_of(batch, [], 0)
    monkeypatch.setattr("trainkit.runtime.check_compiler", lambda device: None)
    with pytest.raises(ConfigError, match=r"compile=true with data\.documents=apart: every batch .*set compile=false"):
        make(path, "apart", compile=True)
