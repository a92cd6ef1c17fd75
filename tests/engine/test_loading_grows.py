"""What loading a checkpoint costs as a model gets more tensors."""

from collections import Counter

import pytest
import torch
from torch import nn

import trainkit
from trainkit.engine.sharded_tensors import ShardedTensors


def _saved(path, num_layers):
    runtime = trainkit.Runtime(seed=0)
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(num_layers)))
    engine = runtime.setup(layers, torch.optim.AdamW(layers.parameters()))
    for batch in runtime.batches(torch.ones(4, 4), batch_size=4, num_steps=1):
        engine.backward(engine(batch.data).square().mean())
        engine.step()
    runtime.save(path, model=engine)
    runtime.finish_saving()
    return runtime, engine


@pytest.mark.parametrize("num_layers", [2, 20])
def test_all_weights_are_listed_a_few_times_only(tmp_path, monkeypatch, num_layers):
    """Listing them once for each tensor took minutes under FSDP, with the 400 tensors of a BERT-large."""
    runtime, engine = _saved(tmp_path / "saved", num_layers)
    calls, listed = Counter[str](), ShardedTensors.weights

    def weights(self):
        calls["weights"] += 1
        return listed(self)

    monkeypatch.setattr(ShardedTensors, "weights", weights)
    runtime.load(tmp_path / "saved", model=engine)
    assert 1 <= calls["weights"] <= 8
    runtime.close()
