"""The budget of time. Oracles: a clock that is set by hand, and the schedule of a run of that length."""

import math
import time

import pytest
import torch

import trainkit
from trainkit import checkpoint
from trainkit.distributed.cluster import Cluster
from trainkit.distributed.ranks import Ranks
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks
from trainkit.training.budget import Budget

BATCH, PLANNED = 4, 1000


def _factors(speed, *, minutes=1.0, num_samples=PLANNED, first_s=0.0):
    """The factor after each step of `speed` samples a second, until the budget is spent, and the position then."""
    now = [100.0]
    budget = Budget(minutes, clock=lambda: now[0])
    budget.start(0, PLANNED)
    now[0] += first_s
    factors, position, alone = [], 0, Ranks(Cluster(), torch.device("cpu"))
    while budget.rest_s and position < num_samples:
        now[0] += BATCH / speed
        position += BATCH
        factors.append(budget.stretch(position, num_samples, alone))
    return factors, position


def test_a_run_that_is_cut_off_comes_to_the_end_of_its_schedule():
    factors, position = _factors(speed=5.0)  # 300 of the 1,000 samples
    assert position == 300
    assert factors[4:] == pytest.approx([PLANNED / 300] * len(factors[4:]), rel=1e-9)
    schedule = trainkit.Schedule(warmup=0, total=PLANNED / BATCH, shape="linear")
    expected = trainkit.Schedule(warmup=0, total=300 / BATCH, shape="linear")
    for step in (10, 40, 74):
        assert schedule(round(step * BATCH * factors[step]), BATCH) == pytest.approx(
            expected(step * BATCH, BATCH), abs=2e-3
        )


def test_a_budget_that_is_enough_changes_nothing():
    assert set(_factors(speed=20.0)[0]) == {1.0}
    factors, position = _factors(speed=5.0, first_s=30.0)
    assert position < 160 and all(f == pytest.approx(PLANNED / position, rel=0.05) for f in factors[1:])


@pytest.mark.parametrize(("minutes", "factor"), [(1.0, 4.0), (2.0, PLANNED / 600), (None, 1.0)])
def test_another_budget_begins_by_the_speed_of_the_one_before(minutes, factor):
    budget = Budget(minutes, clock=lambda: 0.0)
    budget.load_state_dict({"spent_s": 60.0, "limit_s": 60.0, "factor": 4.0})
    budget.start(300, PLANNED)  # 300 samples in the first minute
    assert budget.factor == pytest.approx(factor)


def test_the_speed_may_change():
    now = [0.0]
    budget = Budget(1.0, clock=lambda: now[0])
    budget.start(0, PLANNED)
    position, alone = 0, Ranks(Cluster(), torch.device("cpu"))
    while budget.rest_s:
        now[0] += 0.2 if now[0] < 30 else 0.8
        position += BATCH
        factor = budget.stretch(position, PLANNED, alone)
    assert position < PLANNED and factor * position == pytest.approx(PLANNED, rel=0.1)


@pytest.mark.parametrize("minutes", [0, -1, math.nan, math.inf])
def test_minutes_out_of_range_are_refused(minutes):
    with pytest.raises(ConfigError, match=r"minutes=.*: must be a number above 0"):
        Budget(minutes)


class Slow(trainkit.Recipe):
    """Steps of 20 ms; on ranks other than 0 the clock is wrong by an hour, and must not count."""

    best_metric = "held_out_loss"

    def __init__(self, runtime, num_steps=500):
        self.runtime, self.num_samples, self.lrs, self.num_finished = runtime, BATCH * num_steps, [], 0
        network = torch.nn.Linear(1, 1)
        schedule = trainkit.Schedule(shape="linear", total=num_steps, warmup=0)
        self.engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=1.0), schedule=schedule)

    def engines(self):
        return {"engine": self.engine}

    def batches(self, start=0):
        return self.runtime.batches(torch.zeros(8, 1), batch_size=BATCH, start=start)

    def train_step(self, batch):
        time.sleep(0.02)
        self.engine.backward(self.engine(batch.data).mean() * 0)
        result = self.engine.step()
        self.lrs.append(result.lr)
        return result.metrics()

    def evaluate(self):
        return {"held_out_loss": 1.0}

    def finish(self):
        self.num_finished += 1


def _fit(run_dir, minutes, strategy="ddp"):
    runtime = trainkit.Runtime(device="cpu", run_dir=run_dir, tracker=trainkit.Tracker(), strategy=strategy)
    recipe = Slow(runtime)
    trainer = trainkit.Trainer(recipe, save_every=10, minutes=minutes)
    if runtime.ranks.rank:
        trainer.length.budget._clock = lambda: time.monotonic() * 3 + 3600
    began = time.monotonic()
    metrics = trainer.fit()
    return metrics, trainer.step, recipe.lrs, recipe.num_finished, time.monotonic() - began


def _fit_thrice(run_dir):
    """Ended by its budget; started again; given more."""
    return [_fit(run_dir, minutes) for minutes in (1 / 30, 1 / 30, 2 / 30)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_budget_ends_a_run_and_more_of_it_goes_on(tmp_path, world_size):
    ranks = run_ranks(_fit_thrice, world_size, tmp_path / "run")
    for (metrics, step, lrs, num_finished, seconds), again, more in ranks:
        assert metrics == {"held_out_loss": 1.0} and num_finished == 1
        assert 3 < step < 200 and 1.5 < seconds < 30
        assert lrs[0] == 1.0 and min(lrs[-3:]) < 0.4, "the schedule is to end with the budget"
        assert again[:2] == (metrics, step) and again[2] == [] and again[3] == 0
        assert more[1] > step and more[3] == 1
        assert more[2][0] > 0.1, "of the new budget much is left, and of its schedule"
    assert len({(rank[0][1], *rank[0][2]) for rank in ranks}) == 1, "ranks disagree on steps or rates"
    newest = checkpoint.find(tmp_path / "run")
    values = checkpoint.read_manifest(newest)["values"]
    assert values["step"] == ranks[0][2][1] and values["length"]["budget"]["spent_s"] >= 4.0
    assert (
        f"ended after step {values['step']} (minutes=0.0666667 are over"
        in (tmp_path / "run" / "summary.txt").read_text()
    )
