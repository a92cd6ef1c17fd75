"""Jobs in processes that are forked from one with all imports done, which take seconds in a new interpreter.

The processes run the script itself, with the variables that torchrun sets.
"""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from pathlib import Path

from benchmarks import processes
from benchmarks.processes import free_port
from trainkit.testing import fork_context

PRELOADED = [
    "trainkit.cli.main",
    "trainkit.job",
    "trainkit.tracking.wandb",
    "trainkit_recipes.bert.pretrain",
    "trainkit_recipes.progressive_gan.train",
]
KILLED_AFTER_S = 30.0  # as torchrun does, after its SIGTERM
DUMPING_S = 5.0


class Job:
    """A script on one process, or on several ranks. Ends like a job of torchrun: with the first rank that fails."""

    def __init__(
        self, script: Path, arguments: Sequence[str], ranks: int | None, cwd: Path, environment: Mapping[str, str]
    ) -> None:
        context = fork_context(*PRELOADED)
        self.args = [str(script), *arguments]
        self._directory = tempfile.TemporaryDirectory()
        self._said = [Path(self._directory.name, name) for name in ("out", "err")]
        for path in self._said:
            path.touch()
        self._words: tuple[str, str] | None = None
        self.processes = []
        port = free_port()
        for rank in range(ranks or 1):
            told = {**environment, **_told_by_torchrun(rank, ranks, port)} if ranks is not None else dict(environment)
            process = context.Process(target=_run, args=(self.args, cwd, told, [str(path) for path in self._said]))
            process.start()
            self.processes.append(process)
        self._is_ranked = ranks is not None

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self.processes]

    def poll(self) -> int | None:
        """The exit code, once all have ended: torchrun's is 1 whatever that of a rank."""
        codes = [process.exitcode for process in self.processes]
        if None in codes:
            return None
        return int(any(codes)) if self._is_ranked else codes[0]

    def wait(self, timeout_s: float) -> bool:
        """Whether all have ended, after `timeout_s` at most."""
        deadline = time.monotonic() + timeout_s
        while left := [process.sentinel for process in self.processes if process.exitcode is None]:
            if not connection.wait(left, max(0.0, deadline - time.monotonic())):
                return False
        return True

    @property
    def output(self) -> tuple[str, str]:
        """What was written to stdout and stderr so far."""
        if self._words is None:
            out, err = (path.read_text() for path in self._said)
            return out, err
        return self._words

    def finish(self, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Waits for the end. Raises TimeoutError with all stacks when it does not come, and kills the job."""
        deadline = time.monotonic() + timeout_s
        is_ending = False
        while self.poll() is None:
            left = [process for process in self.processes if process.exitcode is None]
            connection.wait([process.sentinel for process in left], max(0.0, deadline - time.monotonic()))
            if time.monotonic() >= deadline:
                if not is_ending:
                    raise self._late(timeout_s)
                self.kill()
            elif not is_ending and any(process.exitcode for process in self.processes):
                is_ending, deadline = True, time.monotonic() + KILLED_AFTER_S
                for process in left:
                    process.terminate()
        code = self.poll()
        assert code is not None
        self._close()
        return subprocess.CompletedProcess(self.args, code, *self.output)

    def _late(self, timeout_s: float) -> TimeoutError:
        """Kills the job; what it said and where it stood."""
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, signal.SIGABRT)
        self.wait(DUMPING_S)
        self.kill()
        out, err = self.output
        return TimeoutError(f"{self.args} was not done in {timeout_s:.0f} s; exit codes {codes}\n{out}\n{err}")

    def kill(self) -> None:
        """SIGKILL to every process."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self._close()

    def _close(self) -> None:
        self._words = self.output
        self._directory.cleanup()


def _told_by_torchrun(rank: int, world_size: int, port: int) -> dict[str, str]:
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {
        **processes.environment(rank, world_size),
        **meeting,
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def _run(args: list[str], cwd: Path, environment: Mapping[str, str], said: list[str]) -> None:
    import atexit
    import faulthandler

    import torch

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    for number, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    faulthandler.enable()  # SIGABRT has it write all stacks
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = list(args)
    sys.path.insert(0, str(Path(args[0]).parent))
    try:
        runpy.run_path(args[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
