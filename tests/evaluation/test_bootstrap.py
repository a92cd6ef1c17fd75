"""Intervals over held-out samples beside scipy's bootstrap, closed forms, and the truth that they are to cover."""

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from trainkit.errors import ConfigError
from trainkit.evaluation import SampleRanks, SampleSums, bootstrap
from trainkit.evaluation.bootstrap import MOST_UNITS
from trainkit_recipes.bert.finetuning import metrics

DRAW = np.random.default_rng(5)


def width(ends):
    return ends[1] - ends[0]


def near(found, expected, share=0.06):
    """Within a share of the width: ends of 9,999 resamples of two generators differ by some per cent."""
    return found.bounds == pytest.approx(expected, abs=share * width(expected))


def theirs(statistic, *data, paired=False):
    """The BCa interval by scipy."""
    done = stats.bootstrap(
        data, statistic, paired=paired, vectorized=False, n_resamples=4999, method="BCa", rng=np.random.default_rng(1)
    )
    return tuple(done.confidence_interval)


def test_a_mean_of_skewed_values_beside_scipy():
    values = DRAW.exponential(size=60)
    found = bootstrap(SampleSums.means({"m": values}), num_resamples=9999)["m"]
    assert near(found, theirs(np.mean, values))
    assert np.mean(found.bounds) > values.mean() + 0.01, "BCa: the long tail is above"


def test_a_weighted_mean_beside_scipy():
    values, weights = DRAW.normal(size=80), DRAW.integers(1, 9, 80).astype(float)
    found = bootstrap(SampleSums.means({"m": values}, weights=weights), num_resamples=9999)["m"]
    assert near(found, theirs(lambda v, w: (v * w).sum() / w.sum(), values, weights, paired=True))


def test_scores_of_classes_beside_scipy_and_sklearn():
    truth = DRAW.integers(0, 3, 120)
    given = np.where(DRAW.random(120) < 0.6, truth, DRAW.integers(0, 3, 120))
    samples = SampleSums(rows=metrics.class_counts(truth, given, 3), of_sums=metrics.of_class_counts)
    exact = samples.all_once()
    assert exact["macro_f1"] == pytest.approx(f1_score(truth, given, average="macro"), rel=1e-12)
    assert exact["matthews"] == pytest.approx(matthews_corrcoef(truth, given), rel=1e-12)
    found = bootstrap(samples, num_resamples=9999)
    assert near(found["macro_f1"], theirs(metrics.macro_f1, truth, given, paired=True))
    assert near(found["matthews"], theirs(metrics.matthews, truth, given, paired=True))


def test_correlations_beside_scipy():
    x = DRAW.normal(size=90).round(1)  # with equal values
    y = (x + DRAW.normal(size=90)).round(1)
    sums = bootstrap(SampleSums(rows=metrics.moments(x, y), of_sums=metrics.of_moments), num_resamples=9999)
    assert near(sums["pearson"], theirs(lambda a, b: stats.pearsonr(a, b)[0], x, y, paired=True))
    assert near(sums["r2"], theirs(metrics.r2, x, y, paired=True))
    ranks = SampleRanks(name="spearman", truth=x, predictions=y)
    assert ranks.all_once()["spearman"] == pytest.approx(stats.spearmanr(x, y)[0], rel=1e-12)
    found = bootstrap(ranks, num_resamples=9999)["spearman"]
    assert near(found, theirs(lambda a, b: stats.spearmanr(a, b)[0], x, y, paired=True))


def test_tags_are_counted_as_they_are_measured():
    truth = [["B-PER", "I-PER", "O"], ["O", "B-LOC"], ["O", "O", "B-PER"]]
    given = [["B-PER", "O", "O"], ["O", "B-LOC"], ["B-LOC", "O", "B-PER"]]
    samples = SampleSums(rows=metrics.tag_counts(truth, given), of_sums=metrics.of_tag_counts)
    expected = {"accuracy": 6 / 8, **metrics.entity_scores(truth, given)}
    assert samples.all_once() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num", [400, 50_000])
def test_a_share_beside_the_binomial(num):
    right = DRAW.random(num) < 0.9
    found = bootstrap(SampleSums.means({"accuracy": right}))["accuracy"]
    expected = stats.binomtest(int(right.sum()), num).proportion_ci(method="wilson")
    assert near(found, (expected.low, expected.high), 0.12)
    assert (found.num, found.method) == (num, "bootstrap")


def test_few_and_equal_answers_get_the_exact_binomial():
    for right in ([1, 0, 1, 1, 1, 0, 1, 1], [1] * 50, [0] * 30):
        found = bootstrap(SampleSums.means({"accuracy": right}))["accuracy"]
        expected = stats.binomtest(sum(right), len(right)).proportion_ci(method="exact")
        assert found.bounds == pytest.approx((expected.low, expected.high), rel=1e-9)
        assert found.method == "binomial"


def test_many_units_are_grouped_and_lose_nothing():
    values = DRAW.exponential(size=(100_000, 2))
    assert len(values) > 20 * MOST_UNITS
    found = bootstrap(SampleSums.means({"a": values[:, 0], "b": values[:, 1]}))
    for name, column in zip("ab", values.T, strict=True):
        half = 1.96 * column.std() / np.sqrt(len(column))
        assert near(found[name], (column.mean() - half, column.mean() + half), 0.12)
        assert found[name].num == 100_000


def test_a_group_is_resampled_as_a_whole():
    """Words of a sentence that are all right or all wrong say no more than one of them."""
    of_sentences = (DRAW.random(200) < 0.8).astype(float)
    words, groups = np.repeat(of_sentences, 10), np.repeat(np.arange(200), 10)
    whole = SampleSums.means({"m": words})
    found = bootstrap(whole.of_groups(groups, "sentences"))["m"]
    assert near(found, bootstrap(SampleSums.means({"m": of_sentences}))["m"].bounds, 0.02)
    assert width(found.bounds) > 2.5 * width(bootstrap(whole)["m"].bounds)
    assert found.source() == "95 % of 1,000 bootstrap resamples of 200 held-out sentences"
    pairs: dict[str, Any] = {
        "truth": np.repeat(DRAW.normal(size=50), 4),
        "predictions": np.repeat(DRAW.normal(size=50), 4),
    }
    alone = bootstrap(SampleRanks(name="s", truth=pairs["truth"][::4], predictions=pairs["predictions"][::4]))["s"]
    grouped = bootstrap(SampleRanks(name="s", **pairs, groups=np.repeat(np.arange(50), 4), unit="texts"))["s"]
    assert grouped.bounds == pytest.approx(alone.bounds, rel=1e-9) and grouped.num == 50


def test_a_difference_on_the_same_samples_is_paired():
    hard = DRAW.normal(size=300)
    model, guess = hard + 0.1 * DRAW.normal(size=300), hard + 0.05 + 0.1 * DRAW.normal(size=300)
    found = bootstrap(SampleSums.means({"error": model}, {"guess": {"error": guess}}), num_resamples=9999)["error"]
    assert near_ends(found.differences["guess"], theirs(np.mean, model - guess))
    assert width(found.differences["guess"]) < 0.25 * width(found.bounds)


def near_ends(found, expected):
    return found == pytest.approx(expected, abs=0.06 * width(expected))


def test_the_same_seed_gives_the_same_ends():
    samples = SampleSums.means({"m": DRAW.normal(size=100)})
    first, again, other = (bootstrap(samples, seed=seed)["m"].bounds for seed in (3, 3, 4))
    assert first == again != other


def test_nothing_is_said_of_what_does_not_vary():
    assert bootstrap(SampleSums.means({"m": [2.0]})) == {}
    assert bootstrap(SampleSums.means({"m": [2.5] * 40})) == {}
    assert bootstrap(SampleSums.means({"m": [2.0, np.nan] * 40})) == {}
    unknown = np.full((40, 2), np.nan)
    rows = np.stack([DRAW.normal(size=40), np.ones(40)], axis=1)
    samples = SampleSums(rows=rows, of_sums=lambda sums: {"m": sums[..., 0] / sums[..., 1]}, beside={"guess": unknown})
    assert bootstrap(samples)["m"].differences == {}


def test_rows_of_other_units_are_refused():
    with pytest.raises(ConfigError, match=r"m has shape \[3\]: give one number a unit, 4"):
        SampleSums.means({"m": [1, 2, 3, 4]}, {"guess": {"m": [1, 2, 3]}})
    with pytest.raises(ConfigError, match=r"rows of 'guess' have shape \[1, 1\], those of the model \[2, 1\]"):
        SampleSums(rows=[[1], [2]], of_sums=lambda sums: {}, beside={"guess": [[1]]})
    with pytest.raises(ConfigError, match=r"rows of shape \[3\]"):
        SampleSums(rows=[1, 2, 3], of_sums=lambda sums: {})


@pytest.mark.parametrize(
    ("draw", "truth", "least", "num"),
    [
        (lambda draw: draw.random(200) < 0.85, 0.85, 0.93, 400),
        (lambda draw: draw.exponential(size=200), 1.0, 0.93, 400),
        (lambda draw: draw.exponential(size=6000), 1.0, 0.93, 60),  # in groups
        (lambda draw: draw.random(12) < 0.7, 0.7, 0.95, 400),  # exact: never below
    ],
)
def test_95_per_cent_of_intervals_cover_the_truth(draw, truth, least, num):
    covered = 0
    for number in range(num):
        values = draw(np.random.default_rng((77, number)))
        low, high = bootstrap(SampleSums.means({"m": values}), seed=number, num_resamples=500)["m"].bounds
        covered += low <= truth <= high
    # Of so many repetitions, 99.9 % of the counts that this coverage gives, up to the one that 97 % gives.
    most = 1.0 if least >= 0.95 else 0.97
    assert stats.binom.ppf(0.001, num, least) <= covered <= stats.binom.ppf(0.999, num, most), covered
