"""The toy recipe, in which one rank does not arrive."""

import os
import signal
import time
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from tests.user.toy import Points, Toy

Fault = Literal["none", "stops", "other_group", "same_group", "sleeps"]
CULPRIT = 2
AT_STEP = 9
PIDS = "pids"


class Faulty(Toy):
    """`fault` comes about on rank 2 at step 9."""

    def __init__(self, runtime, *, fault: Fault = "none", **arguments):
        super().__init__(runtime, fault="none", **arguments)
        self.planted, self.num_steps = fault, 0
        self.group = dist.new_group() if runtime.ranks.world_size > 1 else None
        (runtime.run_dir / PIDS).mkdir(exist_ok=True)
        (runtime.run_dir / PIDS / str(os.getpid())).touch()

    def train_step(self, batch):
        self.num_steps += 1
        if self.num_steps == AT_STEP and self.runtime.ranks.rank == min(CULPRIT, self.runtime.ranks.world_size - 1):
            self._plant()
        return super().train_step(batch)

    def _plant(self):
        if self.planted == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.planted == "other_group":
            dist.all_reduce(torch.ones(3), group=self.group)  # nobody else comes
        elif self.planted == "same_group":
            dist.all_reduce(torch.ones(3))  # others come to it with something else
        elif self.planted == "sleeps":
            time.sleep(3600)  # it computes something


class SleepyPoints(Points):
    """Rank 2's data stops coming."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.num_asked = getattr(self, "num_asked", 0) + 1
        if self.num_asked > 20 and int(os.environ.get("RANK", 0)) == CULPRIT:
            time.sleep(3600)  # the disk is gone
        return super().__getitem__(index)


def processes_left(run_dir: Path) -> list[str]:
    return [path.name for path in (run_dir / PIDS).iterdir() if Path("/proc", path.name).exists()]
