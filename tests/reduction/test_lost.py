"""A rank or a host that is lost inside a phase ends the job with a clear error."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import trainkit
from benchmarks.bed import Bed, RankError, why_not

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=f"no network namespaces: {why_not()}"),
    pytest.mark.slow,
]


def test_a_rank_that_dies_is_an_error_on_the_others():
    def agent(host: int) -> list[str]:
        where = [f"--node-rank={host}", f"--master-addr={bed.address(0)}", "--master-port=29500"]
        run = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2", *where]
        return [*run, str(Path(__file__).with_name("lost.py"))]

    with Bed(2) as bed:
        options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        agents = bed.start(agent, env={"PYTHONPATH": str(ROOT)}, **options)
        outputs = [process.communicate(timeout=300)[0] for process in agents]
    assert all(process.returncode for process in agents)
    assert "could not all-reduce gradients (hierarchical over 2 groups of 2" in outputs[0]
    assert "see its own log" in outputs[0]
    assert "the run hangs" not in outputs[0]


def _train(directory: str) -> None:
    runtime = trainkit.Runtime(
        comm="hierarchical", device="cpu", hang_timeout_s=10, run_dir=directory, tracker=trainkit.Tracker()
    )
    module = torch.nn.Linear(400, 300)
    engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
    for number, batch in enumerate(runtime.batches((torch.randn(64, 400),), batch_size=16, num_steps=100_000)):
        engine.backward(engine(batch.data[0]).square().mean())
        engine.step()
        if number == 3 and runtime.ranks.is_main:
            (Path(directory) / "trains").touch()


def test_a_host_that_falls_silent_ends_the_job(tmp_path):
    """Nothing closes a connection when a cable is pulled: the watchdog has to notice."""

    def cut() -> None:
        while not (tmp_path / "trains").exists():
            time.sleep(0.05)
        bed.cut(1)

    with Bed(2) as bed:
        threading.Thread(target=cut, daemon=True).start()
        with pytest.raises(RankError, match="ended without a word"):
            bed.run(_train, str(tmp_path), timeout_s=240)
    reports = "".join(path.read_text() for path in (tmp_path / "hang").rglob("*") if path.is_file())
    assert "in backward at" in reports
    assert "trainkit comm stream across groups" in reports  # the phase that waits, by its name
