"""Population-based training: who goes on from whose checkpoint, and with which values."""

import math

import pytest

from tests.sweep.test_sweep import ONE_SLOT, TOY
from trainkit.cli.main import main
from trainkit.sweep.population import FACTORS, following
from trainkit.sweep.settings import Settings
from trainkit.sweep.study import read

VARIED = Settings(space={"lr": "log(1e-4,1e-1)", "width": "range(1,100)", "kind": "a,b,c"}).variations()
PARAMS = [{"lr": 10 ** -(1 + i / 4), "width": 10 * (i + 1), "kind": "abc"[i % 3]} for i in range(8)]


def test_the_worst_quarter_goes_on_from_the_best():
    values = [float(i) for i in range(8)]
    for seed in range(30):
        members = following(values, PARAMS, VARIED, seed=seed)
        assert [member.parent for member in members[:6]] == list(range(6))
        assert all(member.params == PARAMS[i] for i, member in enumerate(members[:6]))
        for member in members[6:]:
            assert member.parent in (0, 1)
            assert 1e-4 <= member.params["lr"] <= 1e-1 and member.params["kind"] in "abc"
            assert 1 <= member.params["width"] <= 99 and isinstance(member.params["width"], int)
    assert following(values, PARAMS, VARIED, seed=3) == following(values, PARAMS, VARIED, seed=3)


def test_most_values_are_perturbed_by_the_papers_factors():
    values, factors = [0.0, 1.0, 2.0, 3.0], []
    params = [{"lr": 1e-2, "width": 50, "kind": "b"}] * 4
    for seed in range(200):
        factors.append(following(values, params, VARIED, seed=seed)[3].params["lr"] / 1e-2)
    near = [f for f in factors if any(math.isclose(f, factor) for factor in FACTORS)]
    assert 0.65 < len(near) / len(factors) < 0.85, "a quarter is drawn anew"
    assert 0.3 < sum(f > 1 for f in near) / len(near) < 0.7


def test_what_diverged_is_replaced():
    members = following([1.0, math.nan, math.inf, 0.5], PARAMS[:4], VARIED, seed=0)
    assert [member.parent for member in members] == [0, 3, 3, 3]


@pytest.mark.slow
def test_a_member_continues_with_new_values(tmp_path):
    words = ["optimizer.lr=log(1e-3,1e-1)", "--sampler", "pbt", "--trials", "4", "--to", str(tmp_path / "sweep")]
    assert main(["sweep", *TOY, *words, *ONE_SLOT]) == 0
    study = read(tmp_path / "sweep")
    trials = study.trials()
    assert [trial.state for trial in trials] == ["finished"] * 12, "three generations of four"
    for trial in trials[4:]:
        assert trial.record.parent is not None and trial.record.parent in range(
            trial.number // 4 * 4 - 4, trial.number // 4 * 4
        )
        (step,) = (study.run_dir(trial.number) / "checkpoints").glob("step_*")
        assert step.name == f"step_{8 * (trial.number // 4 + 1):08d}", "it ends at the evaluation, not a step later"
        started = (study.run_dir(trial.number) / "metrics.jsonl").read_text()
        same = trials[trial.record.parent].params == trial.params
        assert ("changed since the checkpoint: optimizer.lr" in started) != same
    replaced = [trial for trial in trials[4:] if (trial.record.parent or 0) % 4 != trial.number % 4]
    assert len(replaced) == 2, "one in each new generation"
    study.close()
