"""What a run says when it has ended, and what it does when it is started again then."""

import shlex
import subprocess

import pytest
import torch

import trainkit
from tests.counting import Counting
from tests.jobs import ROOT, TOY, environment, run
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks


def fit(run_dir, losses=range(9), *, num_steps=6, commands=(), tracker=None, **options):
    """The recipe and the metrics of a run on this rank."""
    runtime = trainkit.Runtime(device="cpu", run_dir=run_dir, tracker=tracker)
    recipe = Counting(runtime, losses, num_steps, commands)
    return recipe, trainkit.Trainer(recipe, **options).fit()


def test_the_end_names_result_best_checkpoint_and_next_command(tmp_path, capsys):
    run_dir = tmp_path / "a run"
    fit(run_dir, [3, 1, 2], evaluate_every=2, save_every=2, commands=[["echo", str(run_dir), "A [MASK]."]])
    expected = [
        "ended after step 6: held_out_loss 2",
        f"best checkpoint: {run_dir}/checkpoints/step_00000004, held_out_loss 1 at step 4",
        f"run directory: {run_dir}",
        f"next: echo '{run_dir}' 'A [MASK].'",
    ]
    for lines in (capsys.readouterr().out.splitlines(), (run_dir / "summary.txt").read_text().splitlines()):
        assert lines[-5:-1] == expected
        command = lines[-1].removeprefix("next: ")
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert shown.returncode == 0 and "step_00000004" in shown.stdout, shown.stderr


def test_the_end_without_a_directory_or_a_best_metric(tmp_path, capsys, monkeypatch):
    fit(None)
    assert capsys.readouterr().out.endswith(
        "ended after step 6: held_out_loss 0\nnothing was saved: there is no run_dir\n"
    )
    monkeypatch.setattr(Counting, "best_metric", None)
    fit(tmp_path / "run")
    assert f"\nnewest checkpoint: {tmp_path}/run/checkpoints/step_00000006\n" in capsys.readouterr().out


def test_the_next_command_of_ones_own_recipe_works_as_it_is(tmp_path):
    done = run([*TOY, f"run_dir={tmp_path / 'run'}"], 2)
    assert done.returncode == 0, done.stderr
    command = (tmp_path / "run" / "summary.txt").read_text().splitlines()[-1].removeprefix("next: ")
    assert shlex.split(command)[-2:] == [str(tmp_path / "run"), "--trust"]
    again = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert again.returncode == 0, again.stderr
    assert "\nheld_out_loss " in again.stdout, again.stdout


def _start_twice(run_dir, num_steps=6, then=6):
    """What the second start did: its metrics, the steps it made, how often it finished, what trackers heard."""
    fit(run_dir, [3, 1, 2], num_steps=num_steps, evaluate_every=2, save_every=2)
    heard = []

    class Listening(trainkit.Tracker):
        def start(self, run):
            heard.append("start")

        def message(self, text):
            heard.append(text)

    recipe, metrics = fit(run_dir, [9, 9, 9], num_steps=then, tracker=Listening(), evaluate_every=2)
    return metrics, recipe.seen, recipe.num_finished, heard


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_run_that_has_ended_does_nothing_when_restarted(tmp_path, world_size):
    run_dir = tmp_path / "run"
    results = run_ranks(_start_twice, world_size, run_dir)
    summary = (run_dir / "summary.txt").read_text()
    assert [(metrics, seen, num_finished) for metrics, seen, num_finished, _ in results] == [
        ({"held_out_loss": 2.0}, [], 0)
    ] * world_size
    heard = results[0][3]
    assert "start" not in heard and heard[0] == f"the run in {run_dir} is complete; nothing was done"
    assert heard[1:5] == summary.splitlines()[-5:-1] and heard[1].startswith("no verdict: the recipe has no baseline")
    assert heard[-1].startswith("to train on: the same command with a larger recipe.num_steps; to train again")
    assert summary.count("ended after step 6") == 1


def test_a_run_that_has_ended_goes_on_when_it_is_made_longer(tmp_path):
    metrics, seen, num_finished, heard = _start_twice(tmp_path / "run", then=8)
    assert (metrics, seen, num_finished) == ({"held_out_loss": 9.0}, [24, 28], 1) and heard.count("start") == 1


def test_a_run_killed_before_its_result_shows_it(tmp_path, capsys):
    run_dir = tmp_path / "run"
    fit(run_dir, [3])
    (run_dir / "result.json").unlink()
    recipe, metrics = fit(run_dir, [])
    assert (recipe.num_finished, recipe.seen, metrics) == (1, [], {"held_out_loss": 3.0})
    assert (run_dir / "result.json").exists()
    fork, _ = fit(tmp_path / "fork", [], resume=str(run_dir))  # the end of another run is not that of this one
    assert fork.num_finished == 1


def test_the_start_says_what_the_data_are(tmp_path, capsys):
    class OnText(Counting):
        datasets = trainkit.data.Datasets(
            train=torch.zeros(8, 1), held_out=torch.zeros(3, 1), facts={"documents": 1234, "note": "too few"}
        )

    runtime = trainkit.Runtime(device="cpu", run_dir=tmp_path / "run")
    trainkit.Trainer(OnText(runtime, range(9))).fit()
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("data: training samples 8, held-out samples 3, documents 1,234")
    assert lines[start + 1 : start + 3] == ["length: 24 samples, 3 epochs", "data: too few"]
    assert lines[start + 1] in (tmp_path / "run" / "summary.txt").read_text().splitlines()


def test_a_recipe_without_a_runtime():
    class Forgetful(Counting):
        def __init__(self):
            self.num_samples = 8

    with pytest.raises(ConfigError, match=r"Forgetful has no runtime: its __init__ must set self\.runtime = runtime"):
        trainkit.Trainer(Forgetful())
