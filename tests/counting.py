"""A recipe of one weight, for tests of what a Trainer does around a recipe."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

import trainkit


class Counting(trainkit.Recipe):
    """Steps of 4 samples. Returns, of each evaluation, the next of `losses`; counts how often it was told to finish."""

    best_metric = "held_out_loss"

    def __init__(
        self,
        runtime: trainkit.Runtime,
        losses: Iterable[float],
        num_steps: int = 6,
        commands: Sequence[list[str]] = (),
        engine: str = "engine",
    ) -> None:
        self.runtime, self.losses, self.num_samples = runtime, iter(losses), 4 * num_steps
        self.commands, self.num_finished, self.seen = [*commands], 0, list[int]()
        network = torch.nn.Linear(1, 1)
        self.name, self.engine = engine, runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))

    def engines(self) -> dict[str, trainkit.Engine]:
        return {self.name: self.engine}

    def batches(self, start: int = 0) -> Any:
        return self.runtime.batches(torch.zeros(8, 1), batch_size=4, start=start)

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        self.seen.append(batch.position)
        self.engine.backward(self.engine(batch.data).mean())
        return self.engine.step().metrics()

    def evaluate(self) -> dict[str, float]:
        return {"held_out_loss": float(next(self.losses))}

    def next_commands(self, run_dir: Any) -> list[list[str]]:
        return self.commands

    def finish(self) -> None:
        self.num_finished += 1
