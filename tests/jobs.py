"""Runs jobs as a user does: launch/train.py, under torchrun or in processes that are told what torchrun tells."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.jobs import Job
from trainkit import checkpoint

ROOT = Path(__file__).parent.parent
TRAIN = ROOT / "launch" / "train.py"
TOY = ("--config-dir", str(ROOT / "tests" / "user" / "conf"), "experiment=toy_short")


def command(arguments: Sequence[str], ranks: int, script: Path = TRAIN, max_restarts: int = 0) -> list[str]:
    """`script` under torchrun with `ranks` processes."""
    options = ["--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={max_restarts}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, str(script), *map(str, arguments)]


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "WANDB_MODE": "offline",
    }


def run(
    arguments: Sequence[str],
    ranks: int | None = None,
    cwd: Path = ROOT,
    timeout_s: float = 300.0,
    script: Path = TRAIN,
    *,
    once: Callable[[], bool] | None = None,
    act: Callable[[list[int]], None] = lambda pids: None,
) -> subprocess.CompletedProcess[str]:
    """The finished job, in processes of `benchmarks.jobs`. All are ended when it is not done in time.

    `act` is given their process ids, by rank, as soon as `once()` is true.
    """
    job = Job(script, [*map(str, arguments)], ranks, cwd, environment())
    try:
        if once is not None:
            _wait_for(once, job.poll, timeout_s)
            act(job.pids)
        return job.finish(timeout_s)
    except BaseException:
        job.kill()
        raise


def run_until(
    condition: Callable[[], bool], arguments: Sequence[str], ranks: int | None = None, timeout_s: float = 300.0
) -> bool:
    """Starts the job and ends all its processes with SIGKILL once `condition` holds; False when it ended before."""
    job = Job(TRAIN, [*map(str, arguments)], ranks, ROOT, environment())
    try:
        _wait_for(condition, job.poll, timeout_s)
    except AssertionError:
        return False
    finally:
        job.kill()
    return True


def torchrun(
    arguments: Sequence[str],
    ranks: int,
    *,
    script: Path = TRAIN,
    timeout_s: float = 300.0,
    max_restarts: int = 0,
    once: Callable[[], bool] | None = None,
    act: Callable[[int], None] = lambda pid: None,
) -> subprocess.CompletedProcess[str]:
    """The finished job, started by the command that a user types.

    `act` is given the process id of torchrun as soon as `once()` is true.
    """
    process = _start(command(arguments, ranks, script, max_restarts), ROOT)
    try:
        if once is not None:
            _wait_for(once, process.poll, timeout_s)
            act(process.pid)
        out, err = process.communicate(timeout=timeout_s)
    except BaseException:
        kill(process)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _wait_for(condition: Callable[[], bool], poll: Callable[[], int | None], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if poll() is not None:
            raise AssertionError("the job ended before the condition came about")
        if time.monotonic() > deadline:
            raise TimeoutError(f"the condition did not come about within {timeout_s} s")
        time.sleep(0.01)


def newest_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint of a run."""
    return checkpoint.read_whole(checkpoint.step_directories(run_dir / "checkpoints")[-1])


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the job's whole session: torchrun puts every worker in one of its own, so they are found first."""
    for pid in (*descendants(process.pid), process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended by itself in the meantime
    process.wait()


def _start(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, cwd=cwd, env=environment(), stdout=pipe, stderr=pipe, text=True)


def children(pid: int) -> list[int]:
    """Of torchrun: its workers, in the order of their local ranks."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]
