"""`trainkit sweep` with real trials: what they are equal to, what is killed, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.sweep_faults import storm
from tests.jobs import ROOT, environment, run
from trainkit.cli.main import main
from trainkit.sweep import front, read

CONF = ["--config-dir", str(ROOT / "tests" / "user" / "conf")]
TOY = [*CONF, "experiment=toy_short", "deterministic=true"]
ONE_SLOT = ["--slots", f"cpu:{len(os.sched_getaffinity(0))}"]


def _sweep(directory, *words):
    return main(["sweep", *TOY, *map(str, words), "--to", str(directory), *ONE_SLOT])


def _last_trace(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "trace.jsonl").read_text().splitlines()[-1])


@pytest.mark.slow
def test_a_paused_trial_equals_an_uninterrupted_run(tmp_path, capsys):
    space = ["optimizer.lr=log(1e-3,1e-1)", "recipe.batch_size=4,8", "evaluate_every=2", "log_every=2"]
    assert _sweep(tmp_path / "sweep", *space, "--pruner", "halving", "--trials", "6", "--sampler", "random") == 0
    said = capsys.readouterr()
    assert "6 of 6 trials have ended" in said.out and "slot core" in said.err
    study = read(tmp_path / "sweep")
    trials = study.trials()
    best = front(trials, study.signs)[0]
    assert best.record.num_starts > 1, "it was paused at a rung, and continued"
    assert Counter(trial.state for trial in trials)["pruned"] >= 3
    alone = tmp_path / "alone"
    done = run([*TOY, *space[2:], *study.overrides(best), f"run_dir={alone}"])
    assert done.returncode == 0, done.stderr
    result = json.loads((alone / "result.json").read_text())
    assert best.values == [result["metrics"]["held_out_loss"]], "bit for bit, in a process of its own"
    assert _last_trace(study.run_dir(best.number)) == _last_trace(alone)
    assert sum(max(trial.reported) for trial in trials) < 6 * 12, "steps are saved"
    study.close()


@pytest.mark.slow
def test_every_trial_of_a_grid_and_those_that_fail(tmp_path, capsys):
    """Trials that diverge or raise are told, and leave those after them in the same slot as they were."""
    words = ["recipe.fault=none,not_finite,two_backwards", "seed=0,1", "--sampler", "grid"]
    assert _sweep(tmp_path / "sweep", *words) == 0
    study = read(tmp_path / "sweep")
    states = {(t.params["recipe.fault"], t.params["seed"]): t for t in study.trials()}
    assert len(states) == 6
    for seed in "01":
        assert states["none", seed].state == "finished"
        assert states["not_finite", seed].state == "failed"
        assert "is nan" in str(states["not_finite", seed].record.error)
        assert states["two_backwards", seed].state == "failed"
    assert "trial" in capsys.readouterr().err
    run_dir = tmp_path / "alone"
    assert run([*TOY, "recipe.fault=none", "seed=1", f"run_dir={run_dir}"]).returncode == 0
    assert _last_trace(study.run_dir(states["none", "1"].number)) == _last_trace(run_dir)
    study.close()


@pytest.mark.slow
def test_trials_of_two_processes(tmp_path):
    words = ["optimizer.lr=0.01,0.02", "--sampler", "grid", "--processes", "2", "strategy=fsdp"]
    assert main(["sweep", *TOY, *words, "--to", str(tmp_path / "sweep"), "--slots", "cpu:2"]) == 0
    study = read(tmp_path / "sweep")
    first = study.trials()[0]
    assert first.state == "finished"
    run_dir = tmp_path / "alone"
    done = run([*TOY, "strategy=fsdp", *study.overrides(first), f"run_dir={run_dir}"], ranks=2)
    assert done.returncode == 0, done.stderr
    assert _last_trace(study.run_dir(first.number)) == _last_trace(run_dir)
    study.close()


@pytest.mark.slow
def test_killed_workers_trials_and_driver_lose_nothing(tmp_path):
    """The whole count, 200 trials and 23 kills, is benchmarks/sweep_faults.py."""
    found = storm(tmp_path / "sweep", trials=10, kills=3, drivers=1, seed=1)
    assert found["states"] == {"finished": 10} and found["numbers_are_a_range"] and found["run_directories"] == 10
    assert found["killed"]["driver"] == 1 and found["best"] == found["alone"]


@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path):
    words = ["optimizer.lr=0.01,0.02", "--sampler", "grid", "recipe.num_steps=100000", "evaluate_every=100000"]
    command = [sys.executable, "-m", "trainkit.cli", "sweep", *TOY, *words, "--to", str(tmp_path / "sweep"), *ONE_SLOT]
    driver = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "sweep" / "trials" / "00000" / "trace.jsonl"
    end = time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 4):
        assert driver.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    driver.send_signal(signal.SIGTERM)
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == os.EX_TEMPFAIL, said
    assert "SIGTERM: all trials save and end; the same command goes on" in said
    study = read(tmp_path / "sweep")
    assert [trial.state for trial in study.trials()] == ["waiting"]
    assert max((tmp_path / "sweep" / "trials" / "00000" / "checkpoints").glob("step_*"))
    trial = study.take()
    assert trial is not None and trial.number == 0
    study.close()


@pytest.mark.slow
def test_a_metric_that_is_never_measured(tmp_path, capsys):
    assert _sweep(tmp_path / "sweep", "optimizer.lr=log(1e-3,1e-1)", "--metric", "held_out_los") == 2
    said = capsys.readouterr().err
    assert "metric=held_out_los: the recipe does not measure it, but held_out_loss, num_held_out" in said
    assert "Did you mean 'held_out_loss'?" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["optimizer.lrr=log(1e-3,1e-1)"], "there is no key 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
        (["optimizer.lr=log(1e-1,1e-3)"], "type log(0.001,0.1)"),
        (["recipe.batch_size=8,x"], "recipe.batch_size='x'"),
        (["optimizer=adamw,adamx"], "optimizer=adamx: must be one of"),
        (["optimizer.lr=0.1"], "nothing is varied"),
        (["seed=0,1", "run_dir=x"], "run_dir: leave it out"),
        (["seed=0,1", "checkpoint.identity=key"], "leave it out; set TRAINKIT_IDENTITY=FILE"),
        (
            ["seed=0,1", "--sampler", "tpee"],
            "sampler=tpee: must be one of tpe, random, grid, cmaes, nsga2, pbt. Did you",
        ),
        (["seed=0,1", "--pruner", "asha"], "pruner=asha: must be one of none, median, halving, hyperband"),
        (["optimizer.lr=log(1e-3,1e-1)", "--sampler", "grid"], "optimizer.lr=log(1e-3,1e-1) has no steps"),
        (["seed=0,1", "--sampler", "cmaes"], "every key has single values here"),
        (["seed=0,1", "--trials", "0"], "trials=0: must be 1 or more"),
        (["seed=0,1", "--slots", "gpu"], "--slots gpu"),
        (["seed=0,1", "--metric", "a,b", "--pruner", "median"], "compares one metric"),
        (["no_file.yaml"], "no_file.yaml: cannot be read"),
    ],
)
def test_what_is_refused_before_anything_starts(tmp_path, words, reason, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    assert main(["sweep", *TOY, *words, "--to", str(tmp_path / "sweep")]) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_what_the_first_configuration_lacks(tmp_path, capsys):
    assert _sweep(tmp_path / "sweep", "optimizer.lr=0.1,0.2", "schedule.warmup=100", "schedule.total=50") == 2
    said = capsys.readouterr().err
    assert "the first configuration (optimizer.lr=0.1) cannot be trained: schedule.total" in said
    assert not [*(tmp_path / "sweep").glob("trials/*")]
