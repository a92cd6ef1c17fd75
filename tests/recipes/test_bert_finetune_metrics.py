"""Metrics and baselines of fine-tuning beside scikit-learn, scipy, and the official scores of SQuAD."""

import random

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as expected
from sklearn.utils.class_weight import compute_class_weight

from tests.recipes.finetuning import make
from trainkit.testing import run_ranks
from trainkit.training.assessing import assess
from trainkit_recipes.bert.finetuning import metrics, squad
from trainkit_recipes.bert.finetuning.samples import Encoder


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_those_of_scikit_learn_and_scipy(seed):
    draw = np.random.default_rng(seed)
    truth, predictions = draw.integers(0, 2 + seed, 60), draw.integers(0, 3, 60)
    assert metrics.accuracy(truth, predictions) == expected.accuracy_score(truth, predictions)
    assert metrics.macro_f1(truth, predictions) == pytest.approx(expected.f1_score(truth, predictions, average="macro"))
    assert metrics.matthews(truth, predictions) == pytest.approx(expected.matthews_corrcoef(truth, predictions))
    x, y = draw.normal(size=40).round(1), draw.normal(size=40).round(1)  # with ties
    assert metrics.pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert metrics.r2(x, y) == pytest.approx(expected.r2_score(x, y))
    for found in ([2, 2], [2, 3]):
        assert metrics.r2([2, 2], found) == expected.r2_score([2, 2], found)


def test_a_constant_side_correlates_with_nothing():
    assert metrics.matthews([0, 0], [0, 1]) == metrics.pearson([1, 2], [3, 3]) == metrics.spearman([1, 1], [2, 3]) == 0


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("I-PER I-PER B-PER O", {("PER", 0, 1), ("PER", 2, 2)}),  # IOB1: B only between neighbours
        ("B-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),
        ("S-PER B-LOC E-LOC I-LOC", {("PER", 0, 0), ("LOC", 1, 2), ("LOC", 3, 3)}),
        ("O I-MISC", {("MISC", 1, 1)}),
        ("O O", set()),
    ],
)
def test_entities_are_those_of_conlleval(tags, found):
    assert metrics.entities(tags.split()) == found


def test_entity_scores():
    truth = [["B-PER", "I-PER", "O"], ["B-LOC"]]
    assert metrics.entity_scores(truth, [["B-PER", "O", "B-LOC"], ["B-LOC"]]) == {
        "precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5,
    }  # fmt: skip
    assert metrics.entity_scores([["O"]], [["O"]])["f1"] == 0.0


def official(answers, prediction):
    """EM and F1 of one question, as the text of SQuAD's evaluation describes them, by other means than ours."""

    def words(text):
        kept = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
        return [word for word in kept.split() if word not in ("a", "an", "the")]

    best_exact = best_f1 = 0.0
    for answer in [a for a in answers if words(a)] or [""]:
        right, predicted = words(answer), words(prediction)
        rest, num_same = list(right), 0
        for word in predicted:
            if word in rest:
                rest.remove(word)
                num_same += 1
        both_empty = not right and not predicted
        best_exact = max(best_exact, float(right == predicted))
        score = 1.0 if both_empty else 2 * num_same / (len(right) + len(predicted))
        best_f1 = max(best_f1, score)
    return best_exact, best_f1


def test_squad_scores_of_200_answers_are_the_official_ones():
    """Articles, punctuation, case, repeated words, several answers and none."""
    draw = random.Random(0)
    words = ["the", "The", "a", "an", "cat", "Cat's", "dog,", "and", "1,000", "U.S.", "theatre", "--", "é", "dog"]
    seen = set()
    for _ in range(200):
        answers = [" ".join(draw.choices(words, k=draw.randrange(4))) for _ in range(draw.randrange(4))]
        prediction = draw.choice([*answers, "", " ".join(draw.choices(words, k=draw.randrange(5)))])
        scores = squad.scores([answers], [prediction])
        exact, f1 = official(answers, prediction)
        assert scores["exact_match"] == exact, (answers, prediction)
        assert scores["f1"] == pytest.approx(f1, abs=1e-12), (answers, prediction)
        seen.add((exact, 0 < f1 < 1, len(answers)))
    assert len(seen) > 8


def test_classes_are_weighted_as_by_scikit_learn(tmp_path):
    recipe = make(tmp_path, "classification")
    labels = [example.label for example in recipe._train]
    balanced = compute_class_weight("balanced", classes=np.array(recipe.task.classes), y=np.array(labels))
    assert recipe.task._weights.tolist() == pytest.approx(balanced.tolist())


def test_every_task_has_baselines(tmp_path):
    for task, names in {
        "classification": {"majority class", "TF-IDF + logistic regression"},
        "regression": {"mean", "TF-IDF + ridge regression"},
        "token_classification": {"most frequent tag of the word"},
        "question_answering": {"first sentence", "no answer"},
        "sentence_embeddings": {"TF-IDF cosine"},
    }.items():
        recipe = make(tmp_path, task)
        found = recipe.baselines()
        assert {name for values in found.values() for name in values} == names
        assert found.keys() <= recipe.evaluate().keys()
        assert found is recipe.baselines()
    words = make(tmp_path, "classification").baselines()["held_out_accuracy"]
    assert words["TF-IDF + logistic regression"] > words["majority class"] + 0.1


def _assessed(folder, task):
    recipe = make(folder, task)
    try:
        found = assess(recipe)
        return {name: (i.bounds, i.num, i.unit, dict(i.differences)) for name, i in found.intervals.items()}
    finally:
        recipe.runtime.close()


UNITS = {
    "classification": "samples", "regression": "samples", "token_classification": "sentences",
    "question_answering": "contexts", "sentence_embeddings": "samples",
}  # fmt: skip


@pytest.mark.parametrize("task", UNITS)
def test_every_task_has_intervals_and_a_verdict(tmp_path, task):
    recipe = make(tmp_path, task, data={"held_out": 0.5})
    found = assess(recipe)
    decisive = recipe.best_metric.removeprefix("-")
    assert (
        found.decisive == decisive and found.comparisons(decisive) and found.verdict().beats_baseline in (True, False)
    )
    assert {interval.unit for interval in found.intervals.values()} == {UNITS[task]}
    samples = {name: value for one in recipe.held_out_samples() for name, value in one.all_once().items()}
    assert samples == pytest.approx(dict(found.metrics), rel=1e-9), "every metric is recomputed of its samples"
    for one in recipe.held_out_samples():
        for baseline in one.baselines():
            for metric, value in one.all_once(baseline).items():
                if baseline in found.baselines.get(metric, {}):
                    assert value == pytest.approx(found.baselines[metric][baseline], rel=1e-9, abs=1e-12)
    recipe.runtime.close()


def test_intervals_are_those_of_one_rank(tmp_path):
    alone = _assessed(tmp_path, "classification")
    for theirs in run_ranks(_assessed, 2, tmp_path, "classification"):
        assert {name: row[1:3] for name, row in theirs.items()} == {name: row[1:3] for name, row in alone.items()}
        for name, (bounds, *_) in alone.items():
            assert theirs[name][0] == pytest.approx(bounds, rel=1e-9)


def test_examples_of_a_group_are_resampled_together(tmp_path):
    recipe = make(tmp_path, "classification", data={"group_by": "stars"})
    found = assess(recipe)
    num = len({example.row.values["stars"] for example in recipe.held_out_examples})
    assert {(interval.num, interval.unit) for interval in found.intervals.values()} == {(num, "groups by stars")}
    recipe.runtime.close()


def test_a_long_pair_is_cut_at_its_longer_text(tmp_path):
    encoder = Encoder(make(tmp_path, "classification").tokenizer, 12)
    for first, second, kept in [(20, 2, (7, 2)), (2, 20, (2, 7)), (20, 20, (5, 4)), (4, 5, (4, 5)), (4, 6, (4, 5))]:
        tokens = encoder.join([7] * first, [8] * second)
        assert ((tokens.numbers == 7).sum(), (tokens.numbers == 8).sum()) == kept
        assert tokens.first == kept[0] + 2 and len(tokens.numbers) <= 12
    assert encoder.facts() == {"texts cut to recipe.max_length=12": "4 of 5"}
    assert len(encoder.join([7] * 20).numbers) == 12


def test_every_answer_is_in_a_window(tmp_path):
    recipe = make(tmp_path, "question_answering")
    samples, examples = recipe.datasets.train, recipe._train
    spans, windows = samples.targets["spans"], samples.notes.windows
    found = {}
    for (start, end), window in zip(spans.tolist(), windows, strict=True):
        if start:
            first, last = int(window.spans[start, 0]), int(window.spans[end, 1])
            found[window.question] = examples[window.question].pair[first:last]
    answers = {number: e.label[0][0] for number, e in enumerate(examples) if e.label}
    assert found == answers
    assert len(windows) > len(examples) > len(answers)
    assert torch.tensor([len(tokens.numbers) for tokens in samples.texts]).max() <= 48
