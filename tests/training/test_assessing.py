"""Intervals, baselines and the verdict of a run: the same on any ranks, first at the end, kept in every file."""

import json
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

import trainkit
from tests.counting import Counting
from trainkit.errors import ConfigError
from trainkit.evaluation import SampleSums, in_order
from trainkit.testing import run_ranks
from trainkit.training.assessing import assess
from trainkit.training.result import RESULT_FILE


class Guessing(Counting):
    """Held-out samples 0 .. 36, of which the model is right about those that `right` says."""

    best_metric = "-accuracy"
    num_right = 30

    def evaluate(self) -> dict[str, float]:
        held_out, self.own = torch.arange(37.0)[:, None], []
        for batch in self.runtime.evaluation_batches(held_out, batch_size=8):
            self.own += [(int(index), float(index * 7 % 37 < self.num_right)) for index in batch.indices]
        total = self.runtime.ranks.all_reduce_sum({"right": sum(right for _, right in self.own)})
        return {"accuracy": total["right"] / 37, "other": 1.0}

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"accuracy": {"most frequent class": 19 / 37}}

    def held_out_samples(self) -> list[SampleSums]:
        indices, values = [index for index, _ in self.own], [value for _, value in self.own]
        right = in_order(self.runtime.ranks, indices, values)
        return [SampleSums.means({"accuracy": right}, {"most frequent class": {"accuracy": np.arange(37) % 2 == 0}})]


def _fit(run_dir, num_steps=2, kind=Guessing, **options):
    runtime = trainkit.Runtime(device="cpu", run_dir=run_dir, ops="reference", seed=5)
    recipe = kind(runtime, count(), num_steps=num_steps)
    return trainkit.Trainer(recipe, evaluate_every=1, save_every=1, **options).fit()


def _lines(run_dir, kind):
    return [
        line for line in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()) if line["kind"] == kind
    ]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_intervals_are_the_same_on_any_ranks(tmp_path, world_size):
    run_ranks(_fit, world_size, tmp_path / "run")
    result = json.loads((tmp_path / "run" / RESULT_FILE).read_text())
    alone = SampleSums.means({"accuracy": [float(index * 7 % 37 < 30) for index in range(37)]})
    expected = trainkit.evaluation.bootstrap(alone, seed=5)["accuracy"].bounds
    assert result["intervals"] == {"accuracy": list(expected)}
    assert result["verdict"]["beats_baseline"] is True
    assert result["baselines"] == {"accuracy": {"most frequent class": 19 / 37}}


def test_the_verdict_is_the_first_line_and_is_kept(tmp_path, capsys):
    class Poor(Guessing):
        num_right = 20

    _fit(tmp_path, kind=Poor)
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    first = next(number for number, line in enumerate(summary) if line.startswith("ended after step 2")) - 1
    assert summary[first].startswith("the model does not beat its baseline in accuracy: 0.5405 [")
    assert "most frequent class 0.5135 is as good: the difference of 0.02703 [" in summary[first]
    assert summary[first + 2].endswith("of 37 held-out samples); most frequent class 0.5135")
    result = json.loads((tmp_path / RESULT_FILE).read_text())
    assert result["verdict"] == {"text": summary[first], "beats_baseline": False}
    capsys.readouterr()
    _fit(tmp_path, kind=Poor)
    again = capsys.readouterr().out.splitlines()
    assert "is complete; nothing was done" in again[0] and again[1:4] == summary[first : first + 3]
    (tmp_path / RESULT_FILE).unlink()  # as of a process that was killed before: the checkpoint knows it all
    _fit(tmp_path, kind=Poor)
    assert json.loads((tmp_path / RESULT_FILE).read_text()) == {
        **result,
        "budget": json.loads((tmp_path / RESULT_FILE).read_text())["budget"],
    }


def test_intervals_are_logged_and_cut_back(tmp_path):
    _fit(tmp_path)
    before = _lines(tmp_path, "interval")
    assert [line["step"] for line in before] == [1, 2] and before[0].keys() == {"step", "time", "kind", "accuracy"}
    kinds = [line["kind"] for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())]
    assert kinds[kinds.index("interval") - 1] == "evaluation"
    _fit(tmp_path, 4)
    after = _lines(tmp_path, "interval")
    assert after[:2] == before and [line["step"] for line in after] == [1, 2, 3, 4]


def test_a_recipe_of_before_needs_nothing_new(tmp_path):
    assert _fit(tmp_path, kind=Counting) == {"held_out_loss": 1.0}
    result = json.loads((tmp_path / RESULT_FILE).read_text())
    assert result["intervals"] == {} and result["verdict"]["beats_baseline"] is None
    assert _lines(tmp_path, "interval") == []


def _wrong(**members: Any):
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker())
    try:
        assess(type("Wrong", (Guessing,), members)(runtime, count()))
    finally:
        runtime.close()


def test_a_recipe_that_contradicts_itself_is_refused():
    values = {"accuracy": np.zeros(37), "x": np.zeros(37)}
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "samples": (
            {"held_out_samples": lambda self: [SampleSums.means({"accuracy": np.zeros(37)})]},
            "accuracy is 0.8108",
        ),
        "name": ({"held_out_samples": lambda self: [SampleSums.means({"x": values["x"]})]}, "has x, which evaluate"),
        "word": ({"better": {"other": "more"}}, r"better\['other'\]='more': must be lower or higher"),
        "sign": ({"better": {"accuracy": "lower"}}, "best_metric='-accuracy', by which higher is better"),
    }
    for members, message in cases.values():
        with pytest.raises(ConfigError, match=message):
            _wrong(**members)
