"""The verdict: what is said of a model from its metrics, intervals and baselines alone."""

import json
from typing import Any

import pytest

from trainkit.evaluation import Assessment, Comparison, Interval, OverSeeds


def interval(low, high, num=872, **differences):
    return Interval(low=low, high=high, num=num, num_resamples=1000, differences=differences)


def assessed(value=0.912, *, better="higher", baselines=None, **given):
    baselines = {"accuracy": {"majority class": 0.51}} if baselines is None else baselines
    return Assessment(metrics={"accuracy": value}, baselines=baselines, better={"accuracy": better}, **given)


def test_a_model_that_beats_its_baseline():
    found = assessed(intervals={"accuracy": interval(0.897, 0.926)})
    assert found.verdict().beats_baseline is True
    assert found.verdict().text == (
        "the model beats its baseline in accuracy: 0.912 [0.897, 0.926]; majority class 0.51"
    )
    assert [*found.lines()] == [
        "accuracy 0.912 [0.897, 0.926] (95 % of 1,000 bootstrap resamples of 872 held-out samples); majority class 0.51"
    ]


@pytest.mark.parametrize(
    ("value", "ends", "baseline", "better", "expected"),
    [
        (0.9, (0.88, 0.92), 0.5, "higher", "better"),
        (0.9, (0.88, 0.92), 0.89, "higher", "alike"),
        (0.9, (0.88, 0.92), 0.95, "higher", "worse"),
        (0.9, (0.88, 0.92), 0.5, "lower", "worse"),
        (0.9, (0.88, 0.92), 0.95, "lower", "better"),
        (0.9, None, 0.89, "higher", "better"),
        (0.9, None, 0.9, "higher", "alike"),
        (float("nan"), None, 0.5, "higher", "worse"),
        (0.9, None, float("nan"), "lower", "worse"),
    ],
)
def test_a_number_is_compared_with_the_interval(value, ends, baseline, better, expected):
    held = None if ends is None else interval(*ends)
    found = Comparison(metric="m", value=value, baseline="b", reference=baseline, better=better, interval=held)
    assert found.result == expected
    verdict = assessed(
        value, better=better, baselines={"accuracy": {"b": baseline}}, intervals={"accuracy": held} if held else {}
    ).verdict()
    assert verdict.beats_baseline is (expected == "better")
    assert ("does not beat its baseline" in verdict.text) is (expected != "better")


def test_the_difference_on_the_same_samples_decides():
    """Both ends of the metric are above the baseline, and the difference may be chance; and the reverse."""
    held = interval(0.88, 0.92, **{"b": (-0.01, 0.06)})
    given: Any = {"metric": "m", "value": 0.9, "baseline": "b", "better": "higher"}
    assert Comparison(**given, reference=0.87, interval=held).result == "alike"
    assert Comparison(**given, reference=0.89, interval=interval(0.8, 0.95, b=(0.005, 0.015))).result == "better"
    found = assessed(0.9, baselines={"accuracy": {"b": 0.87}}, intervals={"accuracy": held}).verdict()
    assert found.text == (
        "the model does not beat its baseline in accuracy: 0.9 [0.88, 0.92]; b 0.87 is as good: the difference of 0.03 "
        "[-0.01, 0.06] may be chance"
    )


def test_every_baseline_of_the_decisive_metric_is_to_be_beaten():
    metrics = {"loss": 2.0, "accuracy": 0.4}
    baselines = {"loss": {"counts": 3.0}, "accuracy": {"chance": 0.1, "neighbours": 0.5}}
    better: Any = {"loss": "lower", "accuracy": "higher"}
    by_loss = Assessment(metrics=metrics, baselines=baselines, better=better, decisive="loss").verdict()
    assert by_loss.beats_baseline is True
    assert by_loss.text == (
        "the model beats its baseline in loss: 2 (no interval); counts 3; it does not in accuracy (neighbours 0.5)"
    )
    by_accuracy = Assessment(metrics=metrics, baselines=baselines, better=better, decisive="accuracy").verdict()
    assert by_accuracy.beats_baseline is False
    assert by_accuracy.text.endswith(
        "does not beat its baseline in accuracy: 0.4 (no interval); neighbours 0.5 is better"
    )
    both = Assessment(metrics={**metrics, "loss": 4.0}, baselines=baselines, better=better).verdict()
    assert both.text.endswith("loss: 4 (no interval); counts 3 is better; nor in accuracy (neighbours 0.5)")


def test_an_ideal_is_shown_and_not_compared():
    baselines = {"accuracy": {"real images": 0.99, "untrained": 0.1}}
    found = assessed(0.9, baselines=baselines, ideals=("real images",))
    assert found.verdict().beats_baseline is True
    assert [*found.lines()] == ["accuracy 0.9 (no interval); ideal: real images 0.99; untrained 0.1"]


def test_without_baseline_or_direction_there_is_no_verdict():
    alone = assessed(baselines={}).verdict()
    assert alone.beats_baseline is None and "the recipe has no baseline" in alone.text
    undirected = Assessment(metrics={"swd": 1.0}, baselines={"swd": {"a": 2.0}}).verdict()
    assert undirected.beats_baseline is None
    assert undirected.text == "no verdict: the recipe does not say whether lower or higher swd is better"


def test_few_samples_are_said_so():
    found = assessed(intervals={"accuracy": interval(0.6, 0.99, num=11)})
    assert "0.912 [0.6, 0.99] of only 11 samples; majority" in found.verdict().text
    assert "11 held-out samples: fewer than 20, so that it is unreliable" in next(found.lines())


def test_it_comes_back_from_a_file():
    found = assessed(
        intervals={"accuracy": interval(0.897, 0.926, **{"majority class": (0.3, 0.4)})},
        ideals=("x",),
        decisive="accuracy",
    )
    facts = json.loads(json.dumps(found.facts()))
    assert facts["intervals"] == {"accuracy": [0.897, 0.926]}
    assert facts["verdict"] == {"text": found.verdict().text, "beats_baseline": True}
    again = Assessment.of({"accuracy": 0.912}, facts)
    assert again == found and [*again.lines()] == [*found.lines()]
    older = Assessment.of({"accuracy": 0.912}, {"step": 3})
    assert older.verdict().beats_baseline is None and [*older.table()] == ["accuracy 0.912"]


def test_over_seeds_by_a_t_interval():
    three = OverSeeds([0.80, 0.82, 0.84])
    assert three.interval() == pytest.approx((0.82 - 4.302653 * 0.02 / 3**0.5, 0.82 + 4.302653 * 0.02 / 3**0.5))
    assert three.against([0.7] * 3, "higher") == "better" and three.against([0.7] * 3, "lower") == "worse"
    assert three.against([0.8] * 3, "higher") == "alike"
    assert three.against([0.79, 0.81, 0.83], "higher") == "better", "paired: always 0.01 above"
    assert three.statement("accuracy", "majority", [0.7] * 3, "higher") == (
        "accuracy: the mean over 3 seeds, 0.82 [0.7703, 0.8697] (95 % t interval), beats majority 0.7 by more than the "
        "seeds differ"
    )
    two = OverSeeds([0.80, 0.84]).statement("accuracy", "majority", [0.7, 0.7], "higher")
    assert "over 2 seeds" in two and "two seeds give a wide one" in two and "does not beat majority 0.7" in two
    assert OverSeeds([0.8]).interval() is None
    assert "one seed says nothing about others" in OverSeeds([0.8]).statement("accuracy", "a", [0.7], "higher")
