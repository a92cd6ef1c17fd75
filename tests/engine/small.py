"""A small network, its data and what is compared of it."""

import torch
from torch import nn

import trainkit


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))


def make_data() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(60, 5, dtype=torch.float64, generator=generator),
        "y": torch.randn(60, dtype=torch.float64, generator=generator),
        # Items a sample: some have none, so that shares differ much in weight.
        "num": torch.randint(0, 4, (60,), generator=generator),
    }


def masked_loss(output, micro):
    """The mean of squared errors, each sample counted `num` times; and the count."""
    count = micro.num.sum()
    squared = (output.squeeze(-1) - micro.y) ** 2
    return (squared * micro.num).sum() / count.clamp(min=1), count


def make_runtime(**kwargs):
    return trainkit.Runtime(**{"precision": "fp64", "device": "cpu", "tracker": trainkit.Tracker(), **kwargs})


def weights_of(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def distance(a, b):
    return float((a - b).abs().max() / b.abs().max())
