"""Case: a model and its data, whose step is measured beside that of other libraries."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model whose loss is `loss(forward, samples)`; `steps_a_turn` is also the cadence of checkpoints."""

    title: str
    make_module: Callable[[], nn.Module]
    make_optimizer: Callable[[Any], torch.optim.Optimizer]
    loss: Callable[[Callable[..., Tensor], Any], Tensor]
    samples: tuple[Tensor, ...]
    batch_size: int
    steps_a_turn: int
    log_every: int
    num_turns: int
    goals: Mapping[str, float]  # over the raw loop
