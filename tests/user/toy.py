"""A recipe and a data set of a user's own, which trainkit knows nothing of."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset

import trainkit


class Points(Dataset[dict[str, torch.Tensor]]):
    """Points of a plane with noise, made anew for each item."""

    def __init__(self, num_samples: int = 200, noise: float = 0.1, fails_on_rank: int | None = None) -> None:
        if fails_on_rank is not None and int(os.environ.get("RANK", 0)) == fails_on_rank:
            raise trainkit.errors.DataError("data.path is not there on this machine")
        self.num_samples, self.noise = num_samples, noise

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.randn(4)
        return {"x": x, "y": x.sum() + self.noise * torch.randn(())}


def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([item[key] for item in items]).double().float() for key in items[0]}


class Toy(trainkit.Recipe):
    """Fits the plane."""

    best_metric = "held_out_loss"

    def __init__(
        self,
        runtime: trainkit.Runtime,
        *,
        data: Any,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[int, int], float] | None,
        batch_size: int = 8,
        num_steps: int = 40,
        grad_accumulation_steps: int = 1,
        fault: Literal[
            "none",
            "two_backwards",
            "not_finite",
            "not_finite_once",
            "out_of_memory",
            "told_at_step_200",
            "told_at_the_start",
            "told_at_the_end",
            "stuck_at_step_50",
        ] = "none",
    ) -> None:
        self.runtime, self.data, self.batch_size, self.fault = runtime, data.load(), batch_size, fault
        self.num_samples = num_steps * batch_size
        network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), trainkit.ops.Dropout(0.1), nn.Linear(16, 1))
        self.network = runtime.setup(
            network,
            optimizer,
            name="network",
            schedule=schedule,
            ema_decay=0.9,
            max_grad_norm=1.0,
            grad_accumulation_steps=grad_accumulation_steps,
        )

    def engines(self):
        return {"network": self.network}

    def batches(self, start=0):
        if self.fault == "told_at_the_start":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)  # until it is heard
        return self.runtime.batches(self.data.train, batch_size=self.batch_size, start=start, collate=self.data.collate)

    def _loss(self, batch):
        return nn.functional.mse_loss(self.network(batch.x).squeeze(-1), batch.y)

    def train_step(self, batch):
        for micro in self.network.micro_batches(batch):
            if self.fault == "out_of_memory" and self.runtime.ranks.rank == 1 and len(micro) > 2:
                raise torch.OutOfMemoryError("planted")
            if self.fault == "told_at_step_200" and self.runtime.position == 199 * self.batch_size:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)  # until it is heard
            if self.fault == "stuck_at_step_50" and self.runtime.position == 49 * self.batch_size:
                time.sleep(1000)
            loss = self._loss(micro)
            is_sick = self.fault == "not_finite" or (self.fault == "not_finite_once" and 100 in micro.positions)
            self.network.backward(loss * float("nan") if is_sick else loss)
            if self.fault == "two_backwards":
                self.network.backward(loss)
        return self.network.step().metrics()

    @torch.no_grad()
    def evaluate(self):
        self.network.module.eval()
        total: dict[str, Any] = {"loss": 0.0, "count": 0.0}
        for batch in self.runtime.evaluation_batches(self.data.held_out, batch_size=16, collate=self.data.collate):
            output = self.network(batch.x).squeeze(-1)
            total["loss"] += nn.functional.mse_loss(output, batch.y, reduction="sum")
            total["count"] += len(batch)
        self.network.module.train()
        sums = self.runtime.ranks.all_reduce_sum(total)
        return {"held_out_loss": sums["loss"] / sums["count"], "num_held_out": sums["count"]}

    def finish(self):
        if self.fault == "told_at_the_end" and self.runtime.ranks.is_main:
            os.kill(os.getppid(), signal.SIGTERM)  # the agent
            time.sleep(0.5)  # until it is heard
