"""Told to end, killed and brought back: every run ends with the bits of one that nothing happened to."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import trainkit
from tests.faults import sick
from tests.jobs import ROOT, TOY, TRAIN, children, command, environment, kill, newest_tensors, run, torchrun
from tests.present import present
from trainkit.cli.main import guarded
from trainkit.distributed import agent
from trainkit.errors import ClusterError, ConfigError
from trainkit.health import signals as module
from trainkit.health.signals import Preempted, Signals
from trainkit.testing import run_ranks

JOB = [*TOY, "recipe.num_steps=400", "log_every=1", "save_every=null", "evaluate_every=100", "deterministic=true"]


def _lines(run_dir: Path) -> list[tuple[int, str]]:
    """(step, kind) of the whole lines of metrics.jsonl that hold measurements."""
    path = run_dir / "metrics.jsonl"
    lines = (
        [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []
    )
    return [(line["step"], line["kind"]) for line in lines if line["kind"] in ("training", "evaluation")]


def _has_come_to(run_dir: Path, step: int) -> bool:
    lines = _lines(run_dir)
    return bool(lines) and lines[-1][0] >= step


def _require_equal(whole: Path, other: Path) -> None:
    expected, found = newest_tensors(whole), newest_tensors(other)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert _lines(whole) == _lines(other), "a step was told twice, or not at all"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs to which nothing happens, by their number of ranks."""
    made: dict[int | None, Path] = {}

    def of(ranks: int | None) -> Path:
        if ranks not in made:
            made[ranks] = tmp_path_factory.mktemp("whole") / "run"
            finished = run([*JOB, f"run_dir={made[ranks]}"], ranks)
            assert finished.returncode == 0, finished.stderr
        return made[ranks]

    return of


def test_ctrl_c_saves_and_asks_for_no_requeue(tmp_path):
    job, run_dir = [*JOB, "num_workers=1", f"run_dir={tmp_path / 'run'}"], tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, str(TRAIN), *job],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 120
        while not _has_come_to(run_dir, 20):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the loader process hears it too
        try:
            out, err = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + signal.SIGINT, err
    assert "trainkit: SIGINT: ends after this step, and saves first; Ctrl-C again ends it at once" in err
    step = _lines(run_dir)[-1][0]
    assert f"SIGINT: stopped after step {step}, saved in {run_dir}; the same command resumes it" in out
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [f"step_{step:08d}"]
    assert not (run_dir / "REQUEUE").exists()


@pytest.mark.parametrize(
    ("ranks", "told", "options", "code"),
    [
        # torchrun signals groups of processes: workers that fetch data are in them.
        (2, "torchrun", ["num_workers=1"], 1),
        (2, "one rank", [], 0),
    ],
)
def test_a_signal_saves_and_a_resume_has_the_same_bits(ranks, told, options, code, whole, tmp_path):
    job, run_dir = [*JOB, *options, f"run_dir={tmp_path / 'run'}"], tmp_path / "run"

    target = 100 + random.randrange(20)

    def has_come() -> bool:
        return _has_come_to(run_dir, target)

    if told == "torchrun":
        ended = torchrun(job, ranks, once=has_come, act=lambda pid: os.kill(pid, signal.SIGTERM))
    else:
        ended = run(job, ranks, once=has_come, act=lambda pids: os.kill(random.choice(pids), signal.SIGTERM))
    assert ended.returncode == code, ended.stderr
    word = json.loads((run_dir / "REQUEUE").read_text())
    assert f"SIGTERM: stopped after step {word['step']}, saved in {run_dir}" in ended.stdout
    assert word["signal"] == "SIGTERM" and target <= word["step"] < 400 and abs(word["time"] - time.time()) < 600
    best = "step_00000100"  # the first that was evaluated
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {best, f"step_{word['step']:08d}"}
    assert [line for line in _lines(run_dir) if line[1] == "training"][-1] == (word["step"], "training")

    resumed = run(job, ranks)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed after step {word['step']}" in resumed.stdout
    _require_equal(whole(ranks), run_dir)
    assert not (run_dir / "REQUEUE").exists()


def test_a_killed_worker_is_restarted_in_the_same_directory(whole, tmp_path):
    def dated() -> Path:
        return next(tmp_path.iterdir(), tmp_path)

    ended = torchrun(
        [*JOB, "save_every=50", f"run_dir={tmp_path}/%Y-%m-%d_%H-%M-%S"],
        2,
        max_restarts=1,
        once=lambda: _has_come_to(dated(), 120),
        act=lambda pid: os.kill(children(pid)[random.randrange(2)], signal.SIGKILL),
    )
    assert ended.returncode == 0, ended.stderr
    assert "resumed after step" in ended.stdout
    assert len(list(tmp_path.iterdir())) == 1
    _require_equal(whole(2), dated())


def test_a_configuration_error_is_printed_once_by_torchrun(tmp_path):
    result = torchrun([*TOY, "recipe.num_stepps=3", f"run_dir={tmp_path / 'run'}"], 2, max_restarts=3)
    told = [line for line in result.stderr.splitlines() if "trainkit: error" in line]
    assert len(told) == 1 and "Did you mean 'recipe.num_steps'" in told[0], result.stderr
    assert result.returncode == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("error", "recurs"), [(ConfigError("no"), True), (ClusterError("gone"), False)])
def test_what_would_come_again_is_remembered(error, recurs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / "0" / "error.json"))

    def fail() -> None:
        raise error

    assert [guarded(fail), guarded(fail)] == [2, 2]
    assert capsys.readouterr().err.count("trainkit: error") == (1 if recurs else 2)
    assert (agent.recall(agent.FAILED) is not None) == recurs


def test_an_error_is_printed_before_it_is_remembered(tmp_path, monkeypatch, capsys):
    """What is remembered ends a rank that starts late, whose end is that of this one: its line has to be out."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / "1" / "error.json"))
    monkeypatch.setenv("RANK", "1")
    remembered = []
    monkeypatch.setattr("trainkit.cli.main.time.sleep", lambda seconds: remembered.append(agent.recall(agent.FAILED)))

    def fail() -> None:
        raise ConfigError("no")

    assert guarded(fail) == 2
    assert remembered == [None] and agent.recall(agent.FAILED) == "no"
    assert capsys.readouterr().err == "trainkit: error (rank 1): no\n"


def test_a_signal_before_an_evaluation_delays_the_evaluation(whole, tmp_path):
    """It saves first, for an evaluation may take longer than is left."""
    job, run_dir = [*JOB, f"run_dir={tmp_path / 'run'}"], tmp_path / "run"
    ended = run([*job, "evaluate_every=100", "recipe.fault=told_at_step_200"])
    assert ended.returncode == os.EX_TEMPFAIL, ended.stderr
    assert json.loads((run_dir / "REQUEUE").read_text())["step"] == 200
    assert _lines(run_dir)[-1] == (200, "training")
    assert run(job).returncode == 0
    _require_equal(whole(None), run_dir)
    assert not (run_dir / "REQUEUE").exists()


class Told(sick.Sick):
    """Told to end in its fifth step."""

    def train_step(self, batch):
        if self.num_computed == 4:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(1.0)
        return super().train_step(batch)


def test_steps_since_the_last_row_are_logged_before_it_ends(tmp_path):
    runtime = sick.make_runtime("single", "stop", tmp_path, log_every=3)
    with pytest.raises(Preempted):
        trainkit.Trainer(Told(runtime, "loss", sick=())).fit()
    assert sick.saved_steps(tmp_path) == [5]
    assert [(line["step"], line["position"]) for line in sick.metrics(tmp_path)] == [(3, 24), (5, 40)]


# -- the agreement -----------------------------------------------------------------------------------------------------


def _runtime() -> trainkit.Runtime:
    return trainkit.Runtime(device="cpu", tracker=trainkit.Tracker())


def _stops(seed: int, told: dict[int, int], waits: bool) -> list[tuple[int, int] | None]:
    """The step at which this rank stops, and the signal's number, for each of some runs of 30 steps of random length.

    told: rank -> the step in which it gets SIGTERM.  waits: whether a step of one rank waits for that of the others.
    """
    module._POLL_S = 0.02
    runtime, results = _runtime(), []
    pace = random.Random(f"{seed} {runtime.ranks.rank}")
    for _ in range(4):
        dist.barrier()
        slow, result = pace.random() * 0.02, None
        with Signals(runtime.ranks) as signals:
            for step in range(30):
                if told.get(runtime.ranks.rank) == step:
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(pace.random() * slow)
                if waits:
                    dist.all_reduce(torch.ones(1))
                if signals.stops_here():
                    result = step, signals.number
                    break
        results.append(result)
    return results


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize(
    ("ranks", "told"), [(2, {}), (2, {1: 10}), (2, {0: 9, 1: 12}), (2, {0: 29}), (4, {3: 0}), (4, {0: 3, 2: 20})]
)
def test_ranks_stop_after_the_same_step(ranks, told, waits):
    results = run_ranks(_stops, ranks, random.randrange(1 << 30), told, waits)
    assert all(result == results[0] for result in results), results
    for stop in results[0]:
        if not told:
            assert stop is None
        elif waits and stop is not None:
            # Ranks that wait for one another are never two steps apart, so the first chance is taken.
            assert stop[0] >= min(told.values()) and stop[1] == signal.SIGTERM
    if waits and told and min(told.values()) < 15:
        assert None not in results[0], "told in mid-run, and not stopped"


def test_one_process_stops_at_once_and_handlers_come_back():
    before = [signal.getsignal(number) for number in module.CAUGHT]
    with Signals(_runtime().ranks) as signals:
        assert not signals.stops_here()
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)  # an echo
        deadline = time.monotonic() + 10
        while not signals.stops_here():
            assert time.monotonic() < deadline
        assert signals.number == signal.SIGUSR1
    assert [signal.getsignal(number) for number in module.CAUGHT] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_to_a_forked_child_is_for_it_alone():
    with Signals(_runtime().ranks) as signals:
        child = multiprocessing.get_context("fork").Process(target=partial(time.sleep, 60))
        child.start()
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM
        time.sleep(0.1)
        assert not signals.stops_here()


def test_ctrl_c_to_a_forked_child_is_left_to_the_parent():
    with Signals(_runtime().ranks):
        child = multiprocessing.get_context("fork").Process(target=partial(time.sleep, 1))
        child.start()
        time.sleep(0.2)
        os.kill(present(child.pid), signal.SIGINT)
        child.join(10)
        assert child.exitcode == 0


def test_a_process_that_was_started_to_ignore_ctrl_c_ignores_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals(_runtime().ranks) as signals:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.1)
            assert not signals.stops_here()
    finally:
        signal.signal(signal.SIGINT, before)


def test_preempted_says_to_launchers_what_they_understand(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert Preempted(signal.SIGTERM).code == os.EX_TEMPFAIL
    assert Preempted(signal.SIGTERM, has_saved=False).code == 128 + signal.SIGTERM
    assert Preempted(signal.SIGINT).code == 128 + signal.SIGINT
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert Preempted(signal.SIGTERM).code == 0


SLEEPER = """
import os, time, trainkit
from trainkit.health.signals import Signals
with Signals(trainkit.Runtime(device="cpu", tracker=trainkit.Tracker()).ranks):
    print(f"ready {os.getpid()}\\n", end="", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(number):
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == f"ready {process.pid}\n"
        process.send_signal(number)
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1] == f"trainkit: a second {number.name}: stopped at once"


def test_ctrl_c_twice_under_torchrun_leaves_no_process(tmp_path):
    """As a terminal does it, to torchrun alone: its workers are in sessions of their own."""
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    with subprocess.Popen(
        command([], 2, script),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            workers = [int(process.stdout.readline().removeprefix("ready ")) for _ in range(2)]
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(1.5)
            assert process.poll() is None and set(workers) <= set(children(process.pid)), "it waits for the step"
            os.killpg(process.pid, signal.SIGINT)
            began = time.monotonic()
            _, err = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                kill(process)
    assert time.monotonic() - began < 25, "torchrun kills what is left only after 30 s"
    assert process.returncode != 0
    assert "Ctrl-C again ends it at once" in err and "stopped at once" in err
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
