"""The batch script that `trainkit launch --slurm` writes, with stand-ins for Slurm's commands: how a job ends."""

import os
import signal
import subprocess
import time

import pytest

from trainkit.errors import ConfigError
from trainkit.launcher.batch import script
from trainkit.launcher.job import Job, Worker
from trainkit.launcher.slurm import Slurm

HERE, OTHER = "node7", "node8"
# srun: a task on each of two nodes, of which this script's is the first; its code is the largest of theirs.
SRUN = f"""
while [[ $1 == --* ]]; do shift; done
SLURMD_NODENAME={HERE} "$@" &
one=$!
SLURMD_NODENAME={OTHER} "$@" &
two=$!
a=0; b=0; wait "$one" || a=$?; wait "$two" || b=$?
exit $((a > b ? a : b))
"""
SCONTROL = f"""
case "$*" in
"show hostnames"*) printf "{HERE}\\n{OTHER}\\n" ;;
"--oneliner show job "*) echo "JobId=1 JobState=${{STATE:-RUNNING}} Reason=None" ;;
*) echo "$*" >>"$CALLS/scontrol" ;;
esac
"""
AGENT = """
printf '%s\\n' "$@" >"$CALLS/agent.$SLURMD_NODENAME"
for word in "$@"; do if [[ $word == run_dir=* ]]; then run_dir=${word#run_dir=}; fi; done
eval "$AGENT_DOES"
"""
# As trainkit agent: told on the first node, all save and end.
WAITS = """
trap 'touch "$CALLS/told"' TERM
touch "$CALLS/up.$SLURMD_NODENAME"
for _ in {1..600}; do sleep 0.05 & wait $! || true; if [[ -e $CALLS/told ]]; then break; fi; done
"""
SAVES = 'mkdir -p "$run_dir/checkpoints/step_00000200"; exit 75'


@pytest.fixture
def slurm(tmp_path):
    """An environment in which a job of two nodes runs."""
    stand_ins = {
        "scontrol": SCONTROL,
        "scancel": 'echo "$*" >>"$CALLS/scancel"',
        "srun": SRUN,
        "agent": AGENT,
    }
    (tmp_path / "bin").mkdir()
    for name, body in stand_ins.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    job = {
        "SLURM_JOB_ID": "1234567",
        "SLURM_JOB_NAME": "trainkit",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURMD_NODENAME": HERE,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "CALLS": str(tmp_path),
    }
    return {**{k: v for k, v in os.environ.items() if not k.startswith("SLURM")}, **job}


def begin(environment, work=None, *, does, settings=None):
    text = script(Slurm(nodes=2, **(settings or {})), work or Job(run_dir="run"), program=["agent"])
    return subprocess.Popen(
        ["bash", "-c", text],
        cwd=environment["CALLS"],
        env={**environment, "AGENT_DOES": does},
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def told(process, folder):
    """Tells the script that the time limit is near, once both agents are up; its exit code and what it said."""
    deadline = time.monotonic() + 30
    while not all((folder / f"up.{node}").exists() for node in (HERE, OTHER)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    return end(process)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_each_node_runs_one_agent_that_meets_the_others(slurm, tmp_path):
    words = ("recipe=bert", "data.path=/texts/with a space")
    assert end(begin(slurm, Job(words=words, config_dir="/own conf"), does="")) == (0, "")
    expected = [
        "agent",
        "--nproc-per-node=8",
        "--max-restarts=3",
        "--shutdown-timeout=160",
        "--config-dir=/own conf",
        "run_dir=runs/trainkit-1234567",
        *words,
    ]
    assert lines(tmp_path / f"agent.{HERE}") == lines(tmp_path / f"agent.{OTHER}") == expected
    assert not list(tmp_path.glob(".trainkit-agent*"))


def test_near_the_limit_one_agent_is_told_and_the_job_requeued(slurm, tmp_path):
    code, err = told(begin(slurm, does=WAITS + SAVES), tmp_path)
    assert (code, lines(tmp_path / "scontrol")) == (75, ["requeue 1234567"])
    assert err == "trainkit: job 1234567 has saved: it goes back into the queue\n"
    assert not (tmp_path / "scancel").exists()


def test_without_a_new_checkpoint_it_is_not_requeued(slurm, tmp_path):
    (tmp_path / "run" / "checkpoints" / "step_00000200").mkdir(parents=True)
    code, err = told(begin(slurm, does=WAITS + SAVES), tmp_path)
    assert code == 1 and "stopped without a new checkpoint: started again it would get no further" in err
    assert not (tmp_path / "scontrol").exists()


def test_a_run_that_others_told_is_requeued_too(slurm, tmp_path):
    assert end(begin(slurm, does=SAVES))[0] == 75
    assert lines(tmp_path / "scontrol") == ["requeue 1234567"]


@pytest.mark.parametrize("state", ["CANCELLED", "PENDING"])
def test_one_cancelled_or_requeued_by_slurm_is_left_alone(slurm, tmp_path, state):
    assert end(begin({**slurm, "STATE": state}, does=SAVES)) == (75, "")
    assert not (tmp_path / "scontrol").exists()


def test_sigterm_to_a_whole_job_does_not_end_the_script(slurm, tmp_path):
    process = begin(slurm, does=WAITS + SAVES)
    deadline = time.monotonic() + 30
    while not (tmp_path / f"up.{OTHER}").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    (tmp_path / "told").touch()
    code, err = end(process)
    assert code == 75 and "SIGTERM: waiting for the run to save" in err


def test_requeue_can_be_left_out(slurm, tmp_path):
    code, err = end(begin(slurm, does=SAVES, settings={"requeue": False}))
    assert code == 75 and "with the same run_dir it goes on" in err
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize("code", [0, 2, 1, 137])
def test_other_ends_are_the_jobs_own(slurm, tmp_path, code):
    does = f'mkdir -p "$run_dir/checkpoints/step_00000200"; exit {code}'
    assert end(begin(slurm, does=does)) == (code, "")
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (1, True)])
def test_how_a_told_run_ends_decides(slurm, tmp_path, code, requeued):
    """Done meanwhile; an error that would repeat; it did not save in time, but there is a checkpoint to go on from."""
    does = f'{WAITS} mkdir -p "$run_dir/checkpoints/step_00000200"; exit {code}'
    assert told(begin(slurm, does=does), tmp_path)[0] == code
    assert (tmp_path / "scontrol").exists() == requeued


def test_one_told_before_it_has_started_is_cancelled(slurm, tmp_path):
    (tmp_path / "bin" / "srun").write_text(
        '#!/bin/bash\ntouch "$CALLS/up.node7" "$CALLS/up.node8"\n'
        "for _ in {1..600}; do sleep 0.05; if [[ -e $CALLS/scancel ]]; then exit 143; fi; done\n"
    )
    (tmp_path / ".trainkit-agent.1234567").write_text(f"{os.getpid()}\n")  # left by a start that was killed
    code, err = told(begin(slurm, does=""), tmp_path)
    assert code == 1 and "without a new checkpoint" in err
    assert lines(tmp_path / "scancel") == ["1234567.0"]


ELEMENT = {"SLURM_ARRAY_JOB_ID": "1234567", "SLURM_ARRAY_TASK_ID": "1"}


def test_an_element_of_an_array_requeues_itself_alone(slurm, tmp_path):
    job = Job(words=("recipe=bert",), run_dir="run", lines=(("seed=0",), ("seed=1",)))
    assert end(begin({**slurm, **ELEMENT}, job, does=SAVES))[0] == 75
    assert lines(tmp_path / f"agent.{HERE}")[-3:] == ["run_dir=run/1", "recipe=bert", "seed=1"]
    assert lines(tmp_path / "scontrol") == ["requeue 1234567_1"]  # 1234567 alone would be all elements


def test_a_worker_of_a_sweep_goes_on_where_trials_have_saved(slurm, tmp_path):
    sweep = Worker(words=("recipe=bert", "seed=0,1"), directory="sweep", count=2)
    own = {**slurm, **ELEMENT}
    saves = "mkdir -p sweep/trials/00001/checkpoints/step_00000010; exit 75"
    for expected in ("requeue 1234567_1", None):  # the second time nothing is new
        process = subprocess.Popen(
            ["bash", "-c", script(Slurm(), sweep, program=["agent"])],
            cwd=tmp_path,
            env={**own, "AGENT_DOES": saves},
            stderr=subprocess.DEVNULL,
        )
        assert process.wait(60) == (75 if expected else 1)
    assert lines(tmp_path / "scontrol") == ["requeue 1234567_1"]
    assert lines(tmp_path / f"agent.{HERE}") == ["sweep", "--to", "sweep", "recipe=bert", "seed=0,1"]


def test_an_array_has_nodes_of_one_kind():
    with pytest.raises(ConfigError, match="a job array has nodes of one kind"):
        script(Slurm(others=[{"nodes": 1}]), Job(lines=(("seed=0",),)), program=["trainkit"])


def test_variables_and_lines_of_setup_come_first(slurm, tmp_path):
    settings = {"environment": {"NCCL_SOCKET_IFNAME": "ib 0"}, "setup": ["export MODULES=loaded"]}
    does = 'echo "$NCCL_SOCKET_IFNAME $MODULES $OMP_NUM_THREADS" >"$CALLS/seen"'
    assert end(begin(slurm, does=does, settings={**settings, "cpus_per_task": 32}))[0] == 0
    assert lines(tmp_path / "seen") == ["ib 0 loaded 4"]
