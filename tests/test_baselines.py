"""What a recipe's metrics are held against is told once, and again where it has changed or the file was cut back."""

import json

import torch

import trainkit


class Guessing(trainkit.Recipe):
    num_samples = 48

    def __init__(self, runtime):
        self.runtime = runtime
        self.network = runtime.setup(torch.nn.Linear(2, 1), torch.optim.SGD)

    def engines(self):
        return {"network": self.network}

    def batches(self, start=0):
        return self.runtime.batches(torch.randn(8, 2), batch_size=8, start=start)

    def train_step(self, batch):
        self.network.backward(self.network(batch.data).square().mean())
        return self.network.step().metrics()

    def evaluate(self):
        return {"accuracy": 0.5}

    def baselines(self):
        return {"accuracy": {"most frequent class": 0.25 if self.runtime.step < 3 else 0.75}}


def _fit(run_dir, num_samples):
    runtime = trainkit.Runtime(device="cpu", run_dir=run_dir, ops="reference")
    recipe = Guessing(runtime)
    recipe.num_samples = num_samples
    trainkit.Trainer(runtime, recipe, evaluate_every=1, save_every=4).fit()
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["accuracy"]) for line in lines if line["kind"] == "baseline"]


def test_baselines_are_told_when_they_change(tmp_path):
    told = [(1, {"most frequent class": 0.25}), (3, {"most frequent class": 0.75})]
    assert _fit(tmp_path, 32) == told
    assert _fit(tmp_path, 48) == [*told, (5, {"most frequent class": 0.75})], "a resumed process tells its own"
