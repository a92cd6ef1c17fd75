"""A checkpoint of another recipe is refused in one line, whatever the recipe's own words for it would be."""

import pytest
import torch

import trainkit
from trainkit.errors import CheckpointError


class Fitted(trainkit.Recipe):
    num_samples = 8

    def __init__(self, runtime, engine="network", remembers=()):
        self.runtime, self.engine, self.remembers = runtime, engine, remembers
        self.network = runtime.setup(torch.nn.Linear(2, 1), torch.optim.SGD, name=engine)

    def engines(self):
        return {self.engine: self.network}

    def batches(self, start=0):
        return self.runtime.batches(torch.randn(8, 2), batch_size=8, start=start)

    def train_step(self, batch):
        self.network.backward(self.network(batch.data).square().mean())
        return self.network.step().metrics()

    def evaluate(self):
        return {"loss": 0.0}

    def state(self):
        return dict.fromkeys(self.remembers, 1)

    def load_state(self, state):
        for name in self.remembers:
            state[name]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"engine": "G"}, r"another recipe than Fitted: its engines are network, not G; give the run_dir"),
        ({"remembers": ("vocabulary",)}, r"another recipe than Fitted: its state has phase, not 'vocabulary'; give"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_one_line(tmp_path, other, says):
    for chosen in ({"remembers": ("phase",)}, other):
        runtime = trainkit.Runtime(device="cpu", run_dir=tmp_path / "run", tracker=trainkit.Tracker(), ops="reference")
        trainer = trainkit.Trainer(runtime, Fitted(runtime, **chosen))
        if chosen is not other:
            trainer.fit()
    with pytest.raises(CheckpointError, match=says):
        trainer.fit()
