"""Averaged weights: an exponential moving average of a module's parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from trainkit.distributed.shard import Shard
from trainkit.errors import ConfigError


class ExponentialMovingAverage:
    """average = decay * average + (1 - decay) * parameter after every update.

    Buffers, integers and 8-bit floats are copied. `weights` and `buffers` are what this rank holds of them: the
    averages are sharded as they are, in their dtype.
    `decay` in [0, 1); raises ConfigError otherwise.
    """

    def __init__(self, weights: Mapping[str, Shard], buffers: Mapping[str, Shard], decay: float) -> None:
        check_decay(decay)
        self.decay = decay
        self._weights, self._buffers = dict(weights), dict(buffers)
        self._averaged = [name for name, shard in weights.items() if _can_be_averaged(shard.local)]
        self._copied = [name for name in (*weights, *buffers) if name not in self._averaged]
        self._averages = {
            name: shard.like(shard.local.detach().clone()) for name, shard in {**weights, **buffers}.items()
        }

    def shards(self) -> dict[str, Shard]:
        """What this rank holds of the averages, by the module's own names."""
        return self._averages

    def buffers(self) -> list[Tensor]:
        """The averages' copies of the buffers."""
        return [self._averages[name].local for name in self._buffers]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the parameters as they are now into the average."""
        averages = [self._averages[name].local for name in self._averaged]
        torch._foreach_lerp_(averages, [self._weights[name].local for name in self._averaged], 1.0 - self.decay)
        for name in self._copied:
            source = self._weights[name] if name in self._weights else self._buffers[name]
            self._averages[name].local.copy_(source.local)

    @torch.no_grad()
    def reset(self) -> None:
        """Makes the averages equal to the weights and buffers as they are now."""
        for name, source in {**self._weights, **self._buffers}.items():
            self._averages[name].local.copy_(source.local)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the module's weights with the averages, in place: others hold on to the tensors."""
        for name, source in {**self._weights, **self._buffers}.items():
            average = self._averages[name].local
            kept = source.local.clone()
            source.local.copy_(average)
            average.copy_(kept)


def _can_be_averaged(tensor: Tensor) -> bool:
    return tensor.is_complex() or (tensor.is_floating_point() and tensor.element_size() > 1)


def check_decay(decay: float) -> None:
    """Raises ConfigError unless 0 <= decay < 1."""
    if not 0.0 <= decay < 1.0:
        raise ConfigError(f"ema_decay={decay}: allowed is 0 <= ema_decay < 1 (0.999 is usual)")
