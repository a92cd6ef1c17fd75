"""Layers of an encoder from the embeddings to the head: which are trained, and how fast."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def part_of(name: str, num_layers: int) -> int:
    """Returns the place of a parameter: 0 the embeddings, 1 the first layer, ..., `num_layers` + 1 what is above all.

    Example:
        >>> part_of("encoder.embeddings.norm.weight", 12), part_of("encoder.layers.3.norm.bias", 12)
        (0, 4)
        >>> part_of("head.weight", 12)
        13
    """
    if name.startswith("encoder.embeddings."):
        return 0
    found = re.match(r"encoder\.layers\.(\d+)\.", name)
    return int(found[1]) + 1 if found else num_layers + 1


def freeze(module: nn.Module, num_layers: int, num_frozen: int) -> None:
    """Freezes the embeddings and the first layers; parameters that are frozen already stay so.

    Args:
        module: with an `encoder` and a `head`.
        num_layers: of the encoder.
        num_frozen: layers to freeze; 0: nothing is frozen.
    """
    for name, parameter in module.named_parameters():
        if num_frozen and part_of(name, num_layers) <= num_frozen:
            parameter.requires_grad_(False)


def num_frozen_at(num_frozen: int, unfreeze_every: int | None, step: int) -> int:
    """Returns how many layers are frozen in a step: from the top down, one more is trained every so many steps.

    Example:
        >>> [num_frozen_at(2, 10, step) for step in (0, 9, 10, 20, 99)]
        [2, 2, 1, 0, 0]
    """
    return num_frozen if unfreeze_every is None else max(0, num_frozen - step // unfreeze_every)


def make_optimizer(
    make: Callable[..., torch.optim.Optimizer], module: nn.Module, num_layers: int, layer_decay: float
) -> torch.optim.Optimizer:
    """Makes an optimizer with two groups for each layer, the head's first: matrices, and the rest without weight decay.

    Args:
        make: of parameter groups.
        module: whose parameters that require a gradient are optimized.
        num_layers: of the encoder.
        layer_decay: the learning rate of a layer is that of the layer above times this.

    Returns:
        The optimizer.
    """
    decayed = {m.weight for m in module.modules() if isinstance(m, nn.Linear | nn.Embedding)}
    groups: list[dict[str, Any]] = []
    depths: list[int] = []
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    for part in range(num_layers + 1, -1, -1):
        inside = [p for name, p in trained if part_of(name, num_layers) == part]
        for is_decayed in (True, False):
            chosen = [p for p in inside if (p in decayed) == is_decayed]
            if chosen:
                groups.append({"params": chosen} if is_decayed else {"params": chosen, "weight_decay": 0.0})
                depths.append(num_layers + 1 - part)
    optimizer = make(groups)
    for group, depth in zip(optimizer.param_groups, depths, strict=True):
        group["lr"] *= layer_decay**depth
    return optimizer
