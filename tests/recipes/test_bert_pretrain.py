"""The BERT recipe: the same weights and the same held-out numbers from any split of the work; and its report."""

import math
import random
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.present import present
from trainkit import Runtime, Schedule
from trainkit.data import Datasets, Text
from trainkit.errors import CheckpointError, ConfigError, DataError
from trainkit.ops.switch import Kernels
from trainkit.precision import Name
from trainkit.testing import run_ranks
from trainkit.training.assessing import assess
from trainkit_recipes.bert import fill as fill_module
from trainkit_recipes.bert.baselines import FREQUENCIES, LEFT_BIGRAM, MOST_FREQUENT, TWO_SIDED, NeighbourCounts
from trainkit_recipes.bert.data import IGNORED
from trainkit_recipes.bert.model import TINY
from trainkit_recipes.bert.pretrain import MaskedLanguageModelling
from trainkit_recipes.bert.report import outlook
from trainkit_recipes.bert.samples import masked_by

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda"]
PRE_NORM = replace(TINY, norm="pre", positions="relative", num_segments=0, dropout=0.0, attention_dropout=0.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """Documents of very different lengths, many with unknown letters: windows differ in what can be masked."""
    draw = random.Random(0)
    documents = [" ".join(draw.choices(WORDS, k=draw.choice((1, 2, 60)))) for _ in range(400)]
    documents += [" ".join(chr(0x4E00 + draw.randrange(2000)) for _ in range(30)) for _ in range(20)]
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


def make(
    path: Path, model=PRE_NORM, precision: Name = "fp64", ops: Kernels = "fused", **settings: Any
) -> MaskedLanguageModelling:
    runtime = Runtime(precision=precision, seed=3, ops=ops)
    return MaskedLanguageModelling(
        runtime,
        data=Text(path=path, vocab_size=120, sequence_length=24, held_out=0.1),
        model=model,
        optimizer=partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.01),
        **{
            "schedule": Schedule(warmup=3, total=20),
            "batch_size": 32,
            "num_steps": 10,
            "max_grad_norm": 0.5,
            "evaluation_batch_size": 5,
            **settings,
        },
    )


def train(path: Path, model=PRE_NORM, **settings) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Weights after ten steps, and held-out metrics."""
    recipe = make(path, model, **settings)
    for step, batch in enumerate(recipe.batches()):
        recipe.train_step(batch)
        if step == 9:
            break
    return {name: p.detach().clone() for name, p in recipe.model.module.named_parameters()}, recipe.evaluate()


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """max|a-b| / max|b| over the whole model."""
    largest = max(float(value[value > -1e3].abs().max()) for value in theirs.values())
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) / largest


@pytest.fixture(scope="module")
def alone(path):
    return train(path)


SMALL = replace(TINY, hidden_size=32, num_layers=1, feed_forward_size=64)


@pytest.mark.parametrize("model", [SMALL, replace(SMALL, norm="pre", positions="relative", num_segments=0)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_compiled_ops_train_as_plain_pytorch_does(path, world_size, model):
    (weights, metrics), *others = run_ranks(train, world_size, path, model)
    (expected, expected_metrics), *_ = run_ranks(partial(train, ops="reference"), world_size, path, model)
    assert distance(weights, expected) < 1e-9
    assert metrics == pytest.approx(expected_metrics, rel=1e-9)
    for theirs, _ in others:
        assert all(torch.equal(weights[name], theirs[name]) for name in weights)


@pytest.mark.parametrize(("ranks", "grad_accumulation_steps"), [(1, 4), (2, 1), (2, 3), (4, 1)])
def test_weights_and_held_out_numbers_are_split_independent(path, alone, ranks, grad_accumulation_steps):
    for weights, metrics in run_ranks(partial(train, path, grad_accumulation_steps=grad_accumulation_steps), ranks):
        assert distance(weights, alone[0]) < 1e-10
        assert metrics == pytest.approx(alone[1], rel=1e-10)


def test_shares_of_different_sizes(path):
    weights, metrics = train(path, batch_size=31)
    for other, other_metrics in run_ranks(partial(train, path, batch_size=31), 2):
        assert distance(other, weights) < 1e-10
        assert other_metrics == pytest.approx(metrics, rel=1e-10)


def test_a_rank_whose_last_micro_batch_is_empty(path):
    settings = {"model": replace(PRE_NORM, num_layers=1, hidden_size=32, feed_forward_size=64), "batch_size": 3}
    weights, _ = train(path, **settings)
    for other, _ in run_ranks(partial(train, path, grad_accumulation_steps=2, **settings), 2):
        assert distance(other, weights) < 1e-10


def test_dropout_does_not_depend_on_the_split_either(path):
    model = replace(TINY, dropout=0.1, attention_dropout=0.1)
    weights, _ = train(path, model)
    assert distance(train(path, replace(TINY, dropout=0.0, attention_dropout=0.0))[0], weights) > 1e-3
    for other, _ in run_ranks(partial(train, path, model), 2):
        assert distance(other, weights) < 1e-10


def test_masked_counts_are_uneven(path):
    """What the tests above stand on."""
    recipe = make(path)
    counts = set()
    for batch in recipe.batches():
        counts |= set((masked_by(recipe.masking, batch, recipe.runtime, "mask").labels_BK >= 0).sum(dim=1).tolist())
        if batch.position >= 320:
            break
    assert len(counts) > 2


def test_evaluation_counts_every_masked_token_once(path):
    recipe = make(path)
    assert len(recipe.datasets.held_out) % 5 != 0  # the last batch is ragged
    whole = recipe.datasets.held_out.__getitems__(list(range(len(recipe.datasets.held_out))))["tokens"]
    seen = torch.cat([batch.tokens for batch, _, _ in recipe.held_out()])
    assert torch.equal(seen, whole)
    losses, correct = [], 0
    for _, masked, logits in recipe.held_out():
        used = masked.labels_BK >= 0
        log_shares = logits.log_softmax(-1)[used]
        losses.append(-log_shares.gather(1, masked.labels_BK[used][:, None]))
        correct += int((log_shares.argmax(-1) == masked.labels_BK[used]).sum())
    metrics = recipe.evaluate()
    assert metrics["held_out_loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-10)
    assert metrics["held_out_accuracy"] == pytest.approx(correct / len(torch.cat(losses)), rel=1e-12)
    assert recipe.evaluate() == metrics
    assert recipe.model.module.training


def test_the_report_compares_the_same_tokens_on_any_ranks(path):
    recipe = make(path, sentences=("alpha [MASK] gamma [MASK]",))
    report = recipe.report()
    names = ["model", MOST_FREQUENT, LEFT_BIGRAM, TWO_SIDED]
    assert [name for name, _ in report.rows] == names
    assert dict(report.rows)["model"] == pytest.approx(recipe.evaluate()["held_out_accuracy"], rel=1e-12)
    assert recipe.baselines()["held_out_accuracy"] == dict(report.rows[1:])
    assert "[" in report.examples
    assert report.sentences.count("|") == 1  # two masks
    for rows in run_ranks(partial(report_rows, path), 2):
        assert [value for _, value in rows] == pytest.approx([value for _, value in report.rows], rel=1e-10)


def intervals_of(path: Path, **settings) -> tuple[dict[str, Any], dict[str, float]]:
    """Intervals by metric, and metrics, of a model as it is made."""
    recipe = make(path, **settings)
    try:
        found = assess(recipe)
        return {name: (i.low, i.high, i.num, i.unit) for name, i in found.intervals.items()}, dict(found.metrics)
    finally:
        recipe.runtime.close()


def test_tokens_of_a_document_are_resampled_together(path):
    recipe = make(path)
    dataset, end = recipe.datasets.held_out, recipe.tokenizer.end
    stream = [token for window in dataset[:] for token in window["tokens"][1:].tolist()]
    expected: dict[int, int] = {}  # masked tokens by the number of document ends before them
    for batch, masked in recipe.masked_held_out():
        for index, row in zip(
            batch.indices.tolist(), zip(masked.chosen_BK, masked.labels_BK, strict=True), strict=True
        ):
            for place, label in zip(*(part.tolist() for part in row), strict=True):
                if label != IGNORED:
                    document = stream[: index * 23 + place - 1].count(end)
                    expected[document] = expected.get(document, 0) + 1
    recipe.evaluate()
    (samples,) = recipe.held_out_samples()
    assert np.asarray(samples.rows)[:, 2].tolist() == [num for _, num in sorted(expected.items())]
    assert samples.all_once() == pytest.approx(recipe.evaluate(), rel=1e-9)
    baseline = recipe.baselines()["held_out_loss"][FREQUENCIES]
    assert samples.all_once(FREQUENCIES)["held_out_loss"] == pytest.approx(baseline, rel=1e-12)
    own, metrics = intervals_of(path)
    assert own["held_out_loss"][2:] == (len(expected), "documents")
    assert own["held_out_loss"][0] < metrics["held_out_loss"] < own["held_out_loss"][1]
    for theirs, _ in run_ranks(partial(intervals_of, path), 2):
        for name, (low, high, *_) in own.items():
            assert theirs[name][:2] == pytest.approx((low, high), rel=1e-9)


def test_token_frequencies_are_those_of_the_training_text():
    counts = NeighbourCounts.of(
        [torch.tensor([[2, 5, 5, 6, 3, 5]])], SimpleNamespace(pad=0, vocab_size=8, special_tokens=[0, 2, 3])
    )
    expected = {5: 4 / 12, 6: 2 / 12, 7: 1 / 12}  # each of 8 tokens once more than it was seen
    losses = counts.losses(torch.tensor([[5, 6, 7]]))[0].tolist()
    assert losses == pytest.approx([-math.log(share) for share in expected.values()])


def test_the_next_run_finds_the_counts_of_the_same_text(path, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))
    counted = make(path).baselines()

    def refuse(*_):
        raise AssertionError("counted again")

    with monkeypatch.context() as patched:
        patched.setattr(NeighbourCounts, "of", refuse)
        assert make(path).baselines() == counted
        other = tmp_path / "other.txt"
        other.write_text(path.read_text() + "\n\n" + " ".join(WORDS * 4))
        with pytest.raises(AssertionError, match="counted again"):
            make(other).baselines()
    recipe = make(path)
    recipe.datasets = recipe._evaluated.datasets = replace(recipe.datasets, cache=None)
    assert recipe.baselines() == counted


def test_the_report_measures_once_what_an_evaluation_measured(path):
    recipe, forwards = make(path), []
    recipe.model.module.register_forward_hook(lambda *_: forwards.append(1))
    whole = recipe.report()
    num_batches = -(-len(recipe.datasets.held_out) // 5)
    assert len(forwards) == num_batches and len(whole.examples.split("\n\n")) == 4

    recipe.evaluate()
    forwards.clear()
    assert recipe.report() == whole and not forwards
    for batch in islice(recipe.batches(), 10):
        recipe.train_step(batch)
    trained = recipe.report()
    assert dict(trained.rows)["model"] == recipe.evaluate()["held_out_accuracy"] != dict(whole.rows)["model"]


def test_a_model_below_its_baseline_says_the_steps_it_needs():
    rows = [("model", 0.40), (MOST_FREQUENT, 0.06), (LEFT_BIGRAM, 0.2), (TWO_SIDED, 0.46)]
    evaluations = [(500, 0.1), (1000, 0.3), (1500, 0.37), (2000, 0.40)]
    told = present(outlook(rows, evaluations, 0.75))
    assert told.startswith(
        "after 2,000 steps, 0.75 times the training text, the model predicts 40.0 % of held-out tokens"
    )
    assert told.endswith("it gained 10.0 points in the last 1,000 steps, and at that rate needs 2,600 in all: "
                         "try recipe.num_steps=2600")  # fmt: skip
    assert present(outlook(rows, evaluations[-1:], 1)).endswith("below two-sided neighbours (46.0 %)")
    declining = [(1000, 0.41), (2000, 0.40)]
    assert present(outlook(rows, declining, 1)).endswith("it gained nothing in the last 1,000 steps")
    assert outlook([("model", 0.47), *rows[1:]], evaluations, 1) is None


def test_a_length_in_epochs_is_that_many_passes(path):
    recipe = make(path, num_steps=None, num_epochs=2.5, schedule=Schedule(warmup=3, shape="linear"))
    num_windows = len(recipe.datasets.train)
    num_steps = -(-5 * num_windows // (2 * 32))
    assert recipe.num_samples == 32 * num_steps and recipe.num_samples - 32 < 2.5 * num_windows
    assert recipe.model._rates.schedule == Schedule(warmup=3, shape="linear", total=num_steps)
    known = present(MaskedLanguageModelling.restored_arguments(recipe.state_dict(), None))
    assert (known["num_epochs"], known["num_steps"]) == (None, num_steps), "of an evaluation, whatever its data"
    in_samples = make(path, num_epochs=1, num_steps=None, schedule=Schedule(warmup=3, unit="samples"))
    schedule = in_samples.model._rates.schedule
    assert isinstance(schedule, Schedule) and schedule.total == in_samples.num_samples == 32 * -(-num_windows // 32)
    assert make(path, num_steps=None).num_samples == 32 * 2000
    with pytest.raises(ConfigError, match=r"num_steps=10 and recipe\.num_epochs=2 are two lengths: give one, as rec"):
        make(path, num_epochs=2)
    with pytest.raises(ConfigError, match=r"schedule\.total=7: .* needs a total above schedule\.warmup=8"):
        make(path, num_steps=7, schedule=Schedule(warmup=8))


def report_rows(path: Path) -> list[tuple[str, float]]:
    return make(path).report().rows


def test_a_sentence_is_filled_with_the_likeliest_token(path):
    recipe = make(path)
    filled = recipe.fill("alpha [MASK] gamma")
    ((best, share), *_) = filled.predictions[0]
    assert filled.text.split()[1:] == [best, "gamma"] or best.startswith("##")
    assert 0 < share < 1
    with pytest.raises(DataError, match=r"no \[MASK\] in 'alpha'"):
        recipe.fill("alpha")
    with pytest.raises(DataError, match="the model takes at most 512; shorten it"):
        recipe.fill("alpha [MASK] " * 500)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    assert fill_module.main([str(tmp_path / "no_run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("trainkit: error: ")
    assert error.count("\n") == 1


def test_what_cannot_be_trained_on_is_refused(path):
    with pytest.raises(ConfigError, match=r"data\.sequence_length=24 is more than recipe\.model\.max_length=16"):
        make(path, replace(PRE_NORM, max_length=16))
    for key, value in (("num_steps", 0), ("batch_size", 0), ("batch_size", -4), ("evaluation_batch_size", 0)):
        with pytest.raises(ConfigError, match=rf"recipe\.{key}={value}: must be 1 or more"):
            make(path, PRE_NORM, "fp64", "fused", **{key: value})
    with pytest.raises(ConfigError, match=r"recipe\.model\.pooler=true"):
        make(path, replace(PRE_NORM, pooler=True))
    recipe = make(path)
    with pytest.raises(CheckpointError, match="another vocabulary"):
        recipe.load_state_dict({"vocabulary": "other"})
    recipe.load_state_dict(recipe.state_dict())
    bare = Datasets(train=recipe.datasets.train, held_out=recipe.datasets.held_out)
    with pytest.raises(DataError, match="needs data with a tokenizer"):
        MaskedLanguageModelling(recipe.runtime, data=bare, model=PRE_NORM, optimizer=torch.optim.AdamW)
