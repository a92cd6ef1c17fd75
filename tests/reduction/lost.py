"""A training script whose last rank ends without a word in its fourth step; see test_lost."""

import os
import sys

import torch

import trainkit
from trainkit.cli.main import guarded


def train() -> None:
    runtime = trainkit.Runtime(comm="hierarchical", device="cpu", hang_timeout_s=60, tracker=trainkit.Tracker())
    module = torch.nn.Linear(400, 300)
    engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
    for number, batch in enumerate(runtime.batches((torch.randn(64, 400),), batch_size=16, num_steps=1000)):
        if number == 3 and runtime.ranks.rank == runtime.ranks.world_size - 1:
            os._exit(7)
        engine.backward(engine(batch.data[0]).square().mean())
        engine.step()


if __name__ == "__main__":
    sys.exit(guarded(train))
