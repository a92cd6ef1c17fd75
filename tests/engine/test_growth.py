"""Growth: an engine that inherits from another, on any number of ranks."""

import pytest
import torch
from torch import nn

from tests.engine.small import distance, make_data, make_runtime, weights_of
from trainkit.errors import UsageError
from trainkit.testing import run_ranks


class _Growing(nn.Module):
    def __init__(self, num_layers):
        super().__init__()
        torch.manual_seed(num_layers)
        self.layers = nn.ModuleDict({str(i): nn.Linear(5, 5) for i in range(num_layers)})

    def forward(self, x):
        for layer in self.layers.values():
            x = torch.tanh(layer(x))
        return x


def _grow(inherit_optimizer):
    runtime = make_runtime()
    small = _Growing(1)
    engine = runtime.setup(small, lambda groups: torch.optim.Adam(groups, lr=0.01), ema_decay=0.9)
    big = _Growing(2)
    for batch in runtime.batches(make_data(), batch_size=12, num_steps=6):
        if batch.position == 36:
            big.load_state_dict(small.state_dict(), strict=False)
            old = engine
            engine = runtime.setup(
                big,
                lambda groups: torch.optim.Adam(groups, lr=0.01),
                ema_decay=0.9,
                inherit=old,
                inherit_optimizer=inherit_optimizer,
            )
            kept = engine.optimizer.state[big.layers["0"].weight] if inherit_optimizer else {}
            assert bool(kept) == inherit_optimizer
            assert big.layers["1"].weight not in engine.optimizer.state
            with pytest.raises(UsageError, match="took its place"):
                old(batch.x)
        engine.backward((engine(batch.x) ** 2).mean())
        engine.step()
    if inherit_optimizer:
        assert engine.optimizer.state[big.layers["0"].weight]["step"] == 6
    assert engine.num_updates == 6
    with engine.averaged() as module:
        return torch.cat([weights_of(big), weights_of(module)])


@pytest.mark.parametrize("inherit_optimizer", [True, False])
def test_growth_keeps_optimizer_and_averages_on_any_ranks(inherit_optimizer):
    alone = run_ranks(_grow, 1, inherit_optimizer)[0]
    for world_size in (2, 4):
        assert all(distance(weights, alone) < 1e-12 for weights in run_ranks(_grow, world_size, inherit_optimizer))


def _grow_in_place():
    """The same module with a layer added: the old wrapper's hooks must be gone."""
    runtime = make_runtime()
    network = _Growing(1)
    engine = runtime.setup(network, lambda groups: torch.optim.SGD(groups, lr=0.1))
    for batch in runtime.batches(make_data(), batch_size=12, num_steps=4):
        if batch.position == 24:
            torch.manual_seed(3)
            network.layers["1"] = nn.Linear(5, 5)
            engine = runtime.setup(network, lambda groups: torch.optim.SGD(groups, lr=0.1), inherit=engine)
        engine.backward((engine(batch.x) ** 2).mean())
        engine.step()
    return weights_of(network)


def test_growth_in_place():
    alone = run_ranks(_grow_in_place, 1)[0]
    assert all(distance(weights, alone) < 1e-12 for weights in run_ranks(_grow_in_place, 2))
