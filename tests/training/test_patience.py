"""Early stopping. Oracle: the step at which a list of losses, read by eye, has not improved for long enough."""

import pytest

import trainkit
from tests.counting import Counting
from tests.training.test_end import fit
from trainkit import checkpoint
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks

WORSE = [5, 3, 4, float("nan"), 3, 9, 9]  # the best one is the second; 3 again is no improvement


def _fit(run_dir, losses, patience, num_steps=20):
    cadence = {"evaluate_every": 2, "save_every": 2}
    recipe, metrics = fit(
        run_dir, losses, num_steps=num_steps, tracker=trainkit.Tracker(), patience=patience, **cadence
    )
    return len(recipe.seen), metrics, recipe.num_finished


@pytest.mark.parametrize("world_size", [1, 4])
def test_it_ends_after_so_many_evaluations_without_a_better_one(tmp_path, world_size):
    run_dir = tmp_path / "run"
    assert run_ranks(_fit, world_size, run_dir, WORSE, 3) == [(10, {"held_out_loss": 3.0}, 1)] * world_size
    assert [path.name for path in checkpoint.step_directories(run_dir / "checkpoints")] == [
        "step_00000004", "step_00000008", "step_00000010"
    ]  # fmt: skip
    told = (run_dir / "summary.txt").read_text()
    assert "ended after step 10 (no better held_out_loss than that of step 4 in 3 evaluations: patience=3): " in told
    assert "step_00000004, held_out_loss 3 at step 4" in told
    # Started again it is complete; with more patience it goes on and remembers.
    assert run_ranks(_fit, world_size, run_dir, [], 3) == [(0, {"held_out_loss": 3.0}, 0)] * world_size
    assert run_ranks(_fit, world_size, run_dir, [7, 7], 5) == [(4, {"held_out_loss": 7.0}, 1)] * world_size
    assert run_ranks(_fit, world_size, run_dir, [1, 1, 1], None) == [(6, {"held_out_loss": 1.0}, 1)] * world_size


def test_only_a_run_of_evaluations_counts(tmp_path):
    assert _fit(tmp_path / "run", [5, 6, 4, 5, 3, 4, 2, 3, 1, 2], 2) == (20, {"held_out_loss": 2.0}, 1)


def test_higher_may_be_better(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "best_metric", "-held_out_loss")
    assert _fit(tmp_path / "run", [1, 2, 1, 1], 2)[0] == 8


@pytest.mark.parametrize(
    ("options", "metric", "said"),
    [
        ({"patience": 0, "evaluate_every": 2}, "held_out_loss", "patience=0: must be 1 or more"),
        ({"patience": 2}, "held_out_loss", "patience=2 counts evaluations: give evaluate_every"),
        ({"patience": 2, "evaluate_every": 2}, None, "Counting has no best_metric to improve; leave patience out"),
        ({"patience": 2, "evaluate_every": 2}, "accuracy", "best_metric of Counting is 'accuracy', and its evaluate()"),
    ],
)
def test_what_cannot_be_patient_is_refused(monkeypatch, options, metric, said):
    monkeypatch.setattr(Counting, "best_metric", metric)
    with pytest.raises(ConfigError) as refused:
        fit(None, **options)
    assert said in str(refused.value)


def test_other_held_out_data_begin_with_new_patience(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "fingerprints", lambda self: {"held_out": "a"}, raising=False)
    assert _fit(tmp_path / "run", [1, 2, 2], 2)[0] == 6
    monkeypatch.setattr(Counting, "fingerprints", lambda self: {"held_out": "b"})
    recipe, _ = fit(tmp_path / "run", [8, 9, 9, 9], num_steps=20, evaluate_every=2, patience=2, data_changed="accept")
    assert len(recipe.seen) == 6
