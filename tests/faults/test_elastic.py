"""A machine is gone for good: the others go on with fewer ranks, uneven shards and the same global batches."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.processes import free_port
from tests.jobs import ROOT, TOY, environment, kill, newest_tensors, run

JOB = [*TOY, "recipe.num_steps=300", "log_every=1", "save_every=20", "evaluate_every=null", "precision=fp64"]


def _agent(port: int, num_processes: int, run_dir: str, is_host: bool) -> subprocess.Popen[str]:
    """torchrun for one of one or two machines."""
    conf = f"is_host={int(is_host)},last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=2"
    options = [
        *("--nnodes=1:2", f"--nproc-per-node={num_processes}", "--max-restarts=3", "--local-addr=127.0.0.1"),
        *("--rdzv-backend=c10d", "--rdzv-id=elastic", f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-conf={conf}"),
    ]
    script = [str(ROOT / "launch" / "train.py"), *JOB, f"run_dir={run_dir}"]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, *script],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _steps(parent: Path) -> list[int]:
    """Of training, as they were told."""
    lines = [line for path in parent.glob("*/metrics.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line)["step"] for line in lines if line.endswith("}") and '"training"' in line]


@pytest.mark.slow
def test_from_four_ranks_to_three_when_one_machine_is_gone(tmp_path):
    port, runs = free_port(), tmp_path / "runs"
    stays = _agent(port, 3, f"{runs}/%Y-%m-%d_%H-%M-%S", is_host=True)
    goes = _agent(port, 1, f"{runs}/%Y-%m-%d_%H-%M-%S", is_host=False)
    try:
        deadline = time.monotonic() + 120
        while len(_steps(runs)) < 30:
            assert time.monotonic() < deadline and stays.poll() is None and goes.poll() is None
            time.sleep(0.01)
        kill(goes)
        out, _ = stays.communicate(timeout=180)
    finally:
        for agent in (stays, goes):
            kill(agent)
    assert stays.returncode == 0, out
    assert "resumed after step" in out and "global batch 8 = 3 ranks x up to 3 samples" in out

    (run_dir,) = runs.iterdir()
    steps = _steps(runs)
    assert steps == sorted(set(steps)) and steps[-1] == 300
    whole = tmp_path / "whole"
    assert run([*JOB, f"run_dir={whole}"]).returncode == 0
    expected, found = newest_tensors(whole), newest_tensors(run_dir)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) <= 1e-10 * float(tensor.abs().max()), name
