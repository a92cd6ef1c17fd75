"""Jobs of `trainkit launch --slurm` on a real Slurm of three nodes, whose names are not those of their hosts."""

import json
import sys

import pytest

from tests.jobs import TOY
from tests.launch.slurm_cluster import wait_for

pytestmark = pytest.mark.slow
NUM_STEPS = 400
SMALL = ("cluster.gpus_per_node=0", "cluster.cpus_per_task=2", "cluster.time=10", "cluster.signal_lead=60")
LONG = (*TOY, f"recipe.num_steps={NUM_STEPS}", "save_every=20", "evaluate_every=null", "device=cpu")


def launch(slurm, tmp_path, *words):
    """The number of the job, as it stands on stdout."""
    output = f"cluster.output={tmp_path}/%j.out"
    done = slurm.run(sys.executable, "-m", "trainkit.cli", "launch", "--slurm", *SMALL, output, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def newest(run_dir):
    found = [path.name[5:] for path in run_dir.glob("checkpoints/step_*")]
    return max((int(number) for number in found if number.isdigit()), default=0)


def log(tmp_path, number):
    return (tmp_path / f"{number}.out").read_text()


def saves(run_dir):
    return wait_for(lambda: newest(run_dir), 90.0, f"a checkpoint in {run_dir}")


def test_a_told_job_goes_on_and_the_next_phase_waits_for_it(slurm, tmp_path):
    run_dir = tmp_path / "first"
    first = launch(slurm, tmp_path, "cluster.nodes=2", *LONG, f"run_dir={run_dir}")
    second = launch(slurm, tmp_path, "--after", first, *TOY, "device=cpu", f"run_dir={tmp_path}/second")
    saves(run_dir)
    slurm.run("scancel", "--batch", "--signal=USR1", first)  # as Slurm does before the time limit
    slurm.wait(first, "PENDING")
    assert slurm.job(second)["JobState"] == "PENDING"
    assert 0 < newest(run_dir) < NUM_STEPS and f"job {first} has saved" in log(tmp_path, first)
    # Not now: slurmd refuses a start within the second in which it has revoked the credential of the one before.
    slurm.run("scontrol", "update", f"jobid={first}", "starttime=now+3")
    slurm.wait(first, "COMPLETED", "FAILED", timeout_s=300.0)
    assert newest(run_dir) == NUM_STEPS
    slurm.wait(second, "COMPLETED", timeout_s=300.0)
    assert newest(tmp_path / "second") == 24


def test_a_cancelled_job_saves_and_stays_cancelled(slurm, tmp_path):
    number = launch(slurm, tmp_path, *LONG, "recipe.num_steps=1000000", f"run_dir={tmp_path}/run")
    saves(tmp_path / "run")
    slurm.run("scancel", number)
    wait_for(lambda: "stopped after step" in log(tmp_path, number), 60.0, "the last checkpoint")
    slurm.cancel_all()
    assert slurm.job(number)["JobState"] == "CANCELLED"
    assert "it goes back into the queue" not in log(tmp_path, number)


def test_workers_of_an_array_share_a_sweep(slurm, tmp_path):
    words = ["--array", "2", "--trials", "4", "--to", str(tmp_path / "sweep"), *TOY, "device=cpu"]
    number = launch(slurm, tmp_path, *words, "optimizer.lr=log(1e-3,1e-1)")
    for element in (f"{number}_0", f"{number}_1"):
        slurm.wait(element, "COMPLETED")
        assert "4 of 4 trials have ended: 4 finished" in log(tmp_path, element)
    assert len(list((tmp_path / "sweep" / "trials").iterdir())) == 4


def test_nodes_of_two_kinds_train_one_run(slurm, tmp_path):
    others = "cluster.others=[{nodes: 1, cpus_per_task: 1, processes_per_node: 2}]"
    number = launch(slurm, tmp_path, others, *TOY, "device=cpu", f"run_dir={tmp_path}/run")
    slurm.wait(number, "COMPLETED")
    history = json.loads((tmp_path / "run" / "manifest.json").read_text())["history"]
    assert [start["num_ranks"] for start in history] == [3], log(tmp_path, number)
