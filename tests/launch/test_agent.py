"""`trainkit agent`: the agents of two hosts, here on one machine, stop together and say by their exit code how."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from benchmarks.processes import free_port
from tests.jobs import ROOT, TOY, children, descendants, environment, run
from trainkit.cli.agent import add_parser, host_of
from trainkit.cli.main import main
from trainkit.distributed.host import Host
from trainkit.errors import ConfigError

pytestmark = pytest.mark.slow
JOB = (
    *TOY,
    *("recipe.num_steps=100000", "log_every=1", "save_every=null", "evaluate_every=null"),
    *("device=cpu", "deterministic=true"),
)


def _steps(run_dir):
    path = run_dir / "metrics.jsonl"
    lines = (
        [json.loads(one) for one in path.read_text().splitlines(True) if one.endswith("\n")] if path.exists() else []
    )
    return [line["step"] for line in lines if line["kind"] == "training"]


def _wait_for_step(run_dir, step, agents=()):
    deadline = time.monotonic() + 120
    while not (steps := _steps(run_dir)) or steps[-1] < step:
        assert time.monotonic() < deadline, "no step"
        assert all(agent.poll() is None for agent in agents), [agent.communicate()[0] for agent in agents]
        time.sleep(0.05)


@contextmanager
def _two(run_dir, *arguments, options=("--nnodes=2",), of_second=()):
    """Two agents with a process each, on which all ends with the context."""
    port = free_port()
    agents = []
    for number in range(2):
        command = [sys.executable, "-m", "trainkit.cli", "agent", f"--node-rank={number}", "--nproc-per-node=1"]
        command += [*options, f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=two", *JOB, f"run_dir={run_dir}"]
        command += [*arguments, *(of_second if number else ())]
        pipe, out = subprocess.PIPE, subprocess.STDOUT
        agents.append(subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=pipe, stderr=out, text=True))
    try:
        yield agents
    finally:
        for agent in agents:
            for pid in (*descendants(agent.pid), agent.pid):
                if agent.poll() is None:
                    os.kill(pid, signal.SIGKILL)
            agent.wait()


def _ends(agents, within_s):
    """Exit codes and outputs."""
    began = time.monotonic()
    outputs = [agent.communicate(timeout=within_s)[0] for agent in agents]
    print(f"{time.monotonic() - began:.1f} s to the last exit")
    return [agent.returncode for agent in agents], outputs


@pytest.mark.parametrize(
    ("number", "told", "code"),
    [(signal.SIGTERM, 1, 75), (signal.SIGHUP, 0, 75), (signal.SIGINT, 0, 130)],
)
def test_one_agent_is_told_and_all_end(number, told, code, tmp_path):
    with _two(tmp_path / "run") as agents:
        _wait_for_step(tmp_path / "run", 20, agents)
        agents[told].send_signal(number)
        codes, outputs = _ends(agents, 25)
    assert codes == [code, code], outputs
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == f"step_{_steps(tmp_path / 'run')[-1]:08d}"
    assert (tmp_path / "run" / "REQUEUE").exists() == (code == 75)
    output = "".join(outputs)
    assert [
        word for word in ("Traceback", "Error", "error", "frame #", "find_unused", "Warning") if word in output
    ] == []
    assert output.count("stopped after step") == 1


@pytest.mark.parametrize("num_before", [0, 100])
def test_stopped_where_it_started_is_not_started_again(num_before, tmp_path):
    job = [*JOB, f"run_dir={tmp_path}/run"]
    if num_before:
        assert run([*job, f"recipe.num_steps={num_before}"]).returncode == 0
    ended = run([*job, "recipe.fault=told_at_the_start"])
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert f"SIGTERM: stopped after step {num_before}, with no checkpoint that is newer" in ended.stdout
    assert not (tmp_path / "run" / "REQUEUE").exists()


def test_a_run_that_is_told_while_it_ends_is_done(tmp_path):
    job = ["recipe.num_steps=20", "recipe.fault=told_at_the_end"]
    with _two(tmp_path / "run", *job) as agents:
        codes, outputs = _ends(agents, 120)
    assert codes == [0, 0], outputs
    assert not (tmp_path / "run" / "REQUEUE").exists()


def test_processes_that_do_not_end_are_killed_in_time(tmp_path):
    with _two(
        tmp_path / "run", "recipe.fault=stuck_at_step_50", options=("--nnodes=2", "--shutdown-timeout=3")
    ) as agents:
        _wait_for_step(tmp_path / "run", 48, agents)
        agents[1].send_signal(signal.SIGTERM)
        codes, outputs = _ends(agents, 30)
    assert codes == [143, 143], outputs
    assert "did not end within 3 s of the signal: killed" in outputs[1]


def test_a_mistake_on_one_host_ends_both(tmp_path):
    with _two(tmp_path / "run", of_second=["recipe.batch_sice=9"]) as agents:
        codes, outputs = _ends(agents, 60)
    assert codes == [2, 2], outputs
    assert outputs[1].count("trainkit: error") == 1 and "recipe.batch_sice" in outputs[1]


def test_a_killed_process_restarts_those_of_all_hosts(tmp_path):
    job = ["recipe.num_steps=300", "save_every=20"]
    with _two(tmp_path / "run", *job) as agents:
        _wait_for_step(tmp_path / "run", 50, agents)
        (worker,) = children(agents[1].pid)
        os.kill(worker, signal.SIGKILL)
        codes, outputs = _ends(agents, 180)
    assert codes == [0, 0], outputs
    assert "was killed by SIGKILL" in outputs[1] and "all processes are restarted (2 left)" in outputs[1]
    assert _steps(tmp_path / "run") == list(range(1, 301))


def test_a_host_that_dies_is_done_without(tmp_path):
    job = ["recipe.num_steps=3000", "save_every=20"]
    with _two(tmp_path / "run", *job, options=("--nnodes=1:2",)) as agents:
        _wait_for_step(tmp_path / "run", 50, agents)
        for pid in (*descendants(agents[1].pid), agents[1].pid):
            os.kill(pid, signal.SIGKILL)
        began, known = time.monotonic(), _steps(tmp_path / "run")[-1]
        _wait_for_step(tmp_path / "run", known + 30, agents[:1])
        print(f"{time.monotonic() - began:.1f} s from the death of a host to new steps")
        agents[0].send_signal(signal.SIGTERM)
        codes, outputs = _ends(agents[:1], 30)
    assert codes == [75], outputs
    history = json.loads((tmp_path / "run" / "manifest.json").read_text())["history"]
    assert [start["num_ranks"] for start in history] == [2, 1]


def test_processes_of_one_machine_have_the_same_codes(tmp_path):
    command = [sys.executable, "-m", "trainkit.cli", "train", "--processes=2", *JOB, f"run_dir={tmp_path}/run"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=pipe, stderr=pipe, text=True) as process:
        _wait_for_step(tmp_path / "run", 20, [process])
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 75, err


# -- options -----------------------------------------------------------------------------------------------------------


def _host(monkeypatch, words, **variables):
    for name in [name for name in os.environ if name.startswith(("PET_", "SLURM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("RANK", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    parser = add_parser(argparse.ArgumentParser().add_subparsers())
    return host_of(parser.parse_args(words))


STEP = {
    "SLURM_STEP_NODELIST": "localhost,b[2-3]",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_NODEID": "2",
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
}


@pytest.mark.parametrize(
    ("words", "variables", "expected"),
    [
        ([], {}, {"processes": 1, "max_restarts": 3}),
        (["--nproc-per-node=4", "--max-restarts=0"], {}, {"processes": 4, "max_restarts": 0}),
        (
            ["--nnodes=2:4", "--node-rank=1", "--rdzv-endpoint=a:7", "--rdzv-id=x", "--shutdown-timeout=60"],
            {},
            {
                "min_nodes": 2,
                "max_nodes": 4,
                "is_first": False,
                "endpoint": "a:7",
                "job": "x",
                "shutdown_timeout_s": 60,
            },
        ),
        (
            ["--nnodes=2"],  # an option counts more than a variable; the other variables are Kubeflow's
            {"PET_NNODES": "9", "PET_MASTER_ADDR": "job-0.job", "PET_MASTER_PORT": "29500", "PET_NODE_RANK": "0"},
            {"min_nodes": 2, "max_nodes": 2, "is_first": True, "endpoint": "job-0.job:29500", "job": "trainkit"},
        ),
        (["--nnodes=2", "--rdzv-endpoint=[::1]:7"], {}, {"is_first": None, "endpoint": "[::1]:7"}),
        ([], STEP, {"min_nodes": 3, "max_nodes": 3, "is_first": False, "job": "17"}),
    ],
)
def test_options_and_variables(words, variables, expected, monkeypatch):
    host = _host(monkeypatch, words, **variables)
    assert {name: getattr(host, name) for name in expected} == expected
    assert isinstance(host, Host)


@pytest.mark.parametrize(
    ("words", "variables", "says"),
    [
        (["--nnodes=0"], {}, "--nnodes=0: must be a number of at least 1, or MIN:MAX"),
        (["--nnodes=4:3"], {}, "--nnodes=4:3: must be"),
        (["--nnodes=2"], {}, "--nnodes=2 needs --rdzv-endpoint HOST:PORT"),
        (["--nnodes=2", "--rdzv-endpoint=a:99999"], {}, "--rdzv-endpoint=a:99999: must be HOST:PORT"),
        (["--nnodes=2", "--rdzv-endpoint=a:1", "--node-rank=2"], {}, "--node-rank=2: must be a number from 0 to 1"),
        (["--nproc-per-node=many"], {}, "--nproc-per-node=many: must be auto, gpu, or a number"),
        (["--max-restarts=-1"], {}, "--max-restarts=-1: must be a number"),
        ([], {**STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}, "srun has started 2 agents on .*--ntasks-per-node=1"),
    ],
)
def test_wrong_options(words, variables, says, monkeypatch):
    with pytest.raises(ConfigError, match=says):
        _host(monkeypatch, words, **variables)


def test_an_error_is_one_line(capsys):
    assert main(["agent", "--nnodes=none", "recipe=bert"]) == 2
    assert capsys.readouterr().err == (
        "trainkit: error: --nnodes=none: must be a number of at least 1, or MIN:MAX such as 3:4\n"
    )
