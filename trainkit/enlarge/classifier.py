"""Classifier: a small convolutional network, which shows what labelled images are worth for training."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainkit.enlarge.pictures import Joined, Pictures

_WIDTHS = (24, 48, 96)
SMALLEST = 4  # pixels of the last maps
_BATCH_SIZE, _RATE, _WEIGHT_DECAY = 64, 2e-3, 0.05


@dataclass(frozen=True)
class Labelled:
    """Images with their classes.

    Args:
        images: uint8 [N, C, H, W]; indexed by int64 [n].
        labels: int64 [N].
    """

    images: Pictures
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def with_others(self, others: "Labelled") -> "Labelled":
        """Returns both together."""
        return Labelled(Joined(self.images, others.images), torch.cat((self.labels, others.labels)))


def network(channels: int, resolution: int, num_classes: int) -> nn.Module:
    """Makes the classifier: 3x3 convolutions with stride 2 down to 4x4, at most 96 channels, and a linear layer.

    Args:
        channels: of an image.
        resolution: pixels of a side: a power of two, from 4 on.
        num_classes: of the labels.
    """
    layers: list[nn.Module] = []
    num, depth = channels, 0
    while resolution > SMALLEST or not depth:
        wide = _WIDTHS[min(depth, len(_WIDTHS) - 1)]
        stride = 2 if resolution > SMALLEST else 1
        layers += [nn.Conv2d(num, wide, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        num, depth, resolution = wide, depth + 1, resolution // stride
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(num * SMALLEST**2, num_classes))


def train(samples: Labelled, num_classes: int, *, num_steps: int, seed: int) -> nn.Module:
    """Trains a classifier by AdamW, whose rate falls to zero as a cosine.

    Args:
        samples: to train on.
        num_classes: of the labels.
        num_steps: batches of 64 samples, drawn without replacement in each epoch.
        seed: of the weights and the order.

    Returns:
        The classifier, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = network(samples.images.shape[1], samples.images.shape[-1], num_classes)
    optimizer = torch.optim.AdamW(module.parameters(), lr=_RATE, weight_decay=_WEIGHT_DECAY)
    draw = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(num_steps):
        while len(order) < _BATCH_SIZE:
            order = torch.cat((order, torch.randperm(len(samples), generator=draw)))
        chosen, order = order[:_BATCH_SIZE], order[_BATCH_SIZE:]
        for group in optimizer.param_groups:
            group["lr"] = _RATE * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        loss = F.cross_entropy(module(_inputs(samples.images[chosen])), samples.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


@torch.no_grad()
def is_right(module: nn.Module, samples: Labelled) -> Tensor:
    """Returns whether each sample is classified as its label says, bool [N]."""
    parts = [module(_inputs(samples.images[part])).argmax(1) for part in torch.arange(len(samples)).split(512)]
    return torch.cat(parts) == samples.labels


def _inputs(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1.0
