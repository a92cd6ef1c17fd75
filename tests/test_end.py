"""What a run says when it has ended, and what it does when it is started again then."""

import shlex
import subprocess

import torch

import trainkit
from tests.jobs import ROOT, TOY, environment, run


class Counting(trainkit.Recipe):
    """Returns, of each evaluation, the next of `losses`; counts how often it was told to finish."""

    best_metric = "held_out_loss"

    def __init__(self, runtime, losses, num_steps=6, commands=()):
        self.runtime, self.losses, self.num_samples = runtime, iter(losses), 4 * num_steps
        self.commands, self.num_finished, self.seen = [*commands], 0, []
        network = torch.nn.Linear(1, 1)
        self.engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))

    def engines(self):
        return {"engine": self.engine}

    def batches(self, start=0):
        return self.runtime.batches(torch.zeros(8, 1), batch_size=4, start=start)

    def train_step(self, batch):
        self.seen.append(batch.position)
        self.engine.backward(self.engine(batch.data).mean())
        return self.engine.step().metrics()

    def evaluate(self):
        return {"held_out_loss": float(next(self.losses))}

    def next_commands(self, run_dir):
        return self.commands

    def finish(self):
        self.num_finished += 1


def fit(run_dir, losses=range(9), *, num_steps=6, commands=(), tracker=None, **options):
    """The recipe and the metrics of a run on this rank."""
    runtime = trainkit.Runtime(device="cpu", run_dir=run_dir, tracker=tracker)
    recipe = Counting(runtime, losses, num_steps, commands)
    return recipe, trainkit.Trainer(runtime, recipe, **options).fit()


def test_the_end_names_the_result_the_best_checkpoint_and_the_next_command(tmp_path, capsys):
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
        "ended after step 6: held_out_loss 0\nnothing was saved, for there is no run_dir\n"
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
    assert again.stdout.startswith("held_out_loss "), again.stdout
