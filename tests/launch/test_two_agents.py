"""Two torchrun agents on one machine stand in for two nodes."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks.processes import free_port

ROOT = Path(__file__).parents[2]

RECIPE = """
    from collections.abc import Callable

    import torch
    import trainkit


    def samples(num_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.rand(num_samples, 4, generator=torch.Generator().manual_seed(0))
        return x, x.sum(1, keepdim=True)


    class Line(trainkit.Recipe):
        def __init__(self, runtime, *, data: tuple, optimizer: Callable, num_steps: int):
            self.runtime, self.data, self.num_samples = runtime, data, 8 * num_steps
            self.engine = runtime.setup(torch.nn.Linear(4, 1), optimizer)

        def engines(self):
            return {"line": self.engine}

        def batches(self, start=0):
            return self.runtime.batches(self.data, batch_size=8, start=start)

        def train_step(self, batch):
            x, y = batch.data
            self.engine.backward((self.engine(x) - y).square().mean())
            return self.engine.step().metrics()

        def evaluate(self):
            return {"held_out_loss": 1.0, "num_ranks": float(self.runtime.ranks.world_size)}
"""
CONF = {
    "recipe/line.yaml": "_target_: line.Line\ndata: ${data}\noptimizer: ${optimizer}\nnum_steps: 20\n",
    "data/line.yaml": "_target_: line.samples\nnum_samples: 64\n",
}


@pytest.fixture
def job(tmp_path):
    """A recipe and its configuration, as a user would lay them beside each other."""
    (tmp_path / "line.py").write_text(textwrap.dedent(RECIPE))
    for name, text in CONF.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path


def start_agent(directory, endpoint, num_processes):
    arguments = [
        "recipe=line",
        "data=line",
        "optimizer=sgd",
        "log_every=5",
        "evaluate_every=10",
        "save_every=10",
        "tracking=none",
        "device=cpu",
    ]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--nproc-per-node={num_processes}"),
        *("--rdzv-backend=c10d", "--rdzv-id=two-agents", f"--rdzv-endpoint={endpoint}", "--local-addr=127.0.0.1"),
        *(str(ROOT / "launch" / "train.py"), "--config-dir", "conf", *arguments),
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("num_processes", [1, 2])
def test_two_agents_are_one_run(num_processes, job):
    endpoint = f"127.0.0.1:{free_port()}"
    agents = [start_agent(job, endpoint, num_processes) for _ in range(2)]
    try:
        outputs = [agent.communicate(timeout=240)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(outputs)

    (run_dir,) = (job / "runs").iterdir()
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] in ("training", "evaluation")]
    assert [(line["step"], line["kind"]) for line in lines] == [
        *((5, "training"), (10, "training"), (10, "evaluation")),
        *((15, "training"), (20, "training"), (20, "evaluation")),
    ]
    assert lines[-1]["num_ranks"] == 2 * num_processes
    assert lines[-2]["position"] == 160
    assert lines[-2]["loss"] < lines[0]["loss"]
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step_00000010", "step_00000020"]
    speaking = [output for output in outputs if "step" in output]
    assert len(speaking) == 1, "one rank of one agent speaks"
