"""`trainkit seeds`: the mean and the spread of runs that differ in the seed alone."""

import json
import statistics

import pytest
from scipy import stats

from tests.recipes.finetuning import reviews
from trainkit.cli import seeds
from trainkit.cli.main import main
from trainkit.errors import ConfigError
from trainkit.evaluation import Assessment, Interval

SMALL = [
    "recipe.model.hidden_size=16", "recipe.model.num_layers=1", "recipe.model.num_heads=2", "evaluate_every=null",
    "recipe.model.feed_forward_size=32", "device=cpu", "tracking=none", "recipe.batch_size=8", "recipe.num_steps=2",
]  # fmt: skip


def test_a_summary_is_that_of_the_statistics_module():
    runs = [{"a": 1.0, "b": 4.0}, {"a": 2.0, "b": 4.0}, {"a": 4.0, "b": 4.0}]
    baselines = [{"a": {"mean": number}} for number in (0.5, 0.5, 2.0)]
    given = [
        Assessment(metrics=run, baselines=of, better={"a": "higher"}, intervals={"b": Interval(low=3, high=5, num=9)})
        for run, of in zip(runs, baselines, strict=True)
    ]
    found = seeds.summarise(given)
    assert found["a"]["mean"] == pytest.approx(7 / 3)
    assert found["a"]["spread"] == pytest.approx(statistics.stdev([1, 2, 4]))
    assert found["a"]["baselines"] == {"mean": 1.0}
    assert {name: found["b"][name] for name in ("values", "mean", "spread", "baselines", "against", "intervals")} == {
        "values": [4.0] * 3, "mean": 4.0, "spread": 0.0, "baselines": {}, "against": {}, "intervals": [[3, 5]] * 3
    }  # fmt: skip
    expected = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1, 2, 4]))
    assert found["a"]["over_seeds"] == pytest.approx(expected) and found["a"]["intervals"] == [None] * 3
    assert found["a"]["against"] == {"mean": "alike"}
    (line,) = seeds.statements(given)
    assert line.startswith("a: the mean over 3 seeds, 2.333 [") and "does not beat mean 1" in line
    alone = seeds.summarise(given[:1])["a"]
    assert alone["spread"] is alone["over_seeds"] is alone["against"]["mean"] is None


@pytest.mark.parametrize("text", ["0", "", "x", "1,1", "-3"])
def test_what_means_no_seeds(text):
    with pytest.raises(ConfigError, match="must be a number of seeds"):
        seeds.seeds_of(text)


def test_two_seeds(tmp_path, capfd):
    path, run_dir = reviews(tmp_path / "a.csv"), tmp_path / "runs"
    given = ["recipe=bert_finetune", f"data.path={path}", "data.vocab_size=150", f"run_dir={run_dir}", *SMALL]
    assert main(["seeds", "4,7", *given]) == 0
    printed = capfd.readouterr().out
    assert "seeds 4, 7" in printed and "TF-IDF + logistic" in printed
    assert "held_out_accuracy: the mean over 2 seeds" in printed and "two seeds give a wide one" in printed
    found = json.loads((run_dir / "seeds.json").read_text())
    ended = [json.loads((run_dir / f"seed_{seed}" / "result.json").read_text())["metrics"] for seed in (4, 7)]
    assert found["seeds"] == [4, 7]
    assert {name: row["values"] for name, row in found["metrics"].items()} == {
        name: [metrics[name] for metrics in ended] for name in ended[0]
    }
    results = [json.loads((run_dir / f"seed_{seed}" / "result.json").read_text()) for seed in (4, 7)]
    for name, row in found["metrics"].items():
        assert row["intervals"] == [result["intervals"].get(name) for result in results]
    assert found["metrics"]["held_out_accuracy"]["against"].keys() == {"majority class", "TF-IDF + logistic regression"}
    assert ended[0]["held_out_loss"] != ended[1]["held_out_loss"]
    assert main(["seeds", "2", "seed=3", *given]) == 2
    assert "seed=3 is one seed: leave it out" in capfd.readouterr().err
