"""ExponentialMovingAverage: averaged weights of a module."""

from collections.abc import Mapping

import torch
from torch import Tensor

from trainkit.distributed.shard import Shard
from trainkit.errors import ConfigError


class ExponentialMovingAverage:
    """Computes average = decay * average + (1 - decay) * parameter after every update.

    Buffers, integers and 8-bit floats are copied. The averages are sharded like the parameters, and have their dtype.

    Args:
        weights: this rank's shards of the parameters, by name.
        buffers: this rank's shards of the buffers, by name.
        decay: in [0, 1).

    Raises:
        ConfigError: for another decay.
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
        """Returns this rank's shards of the averages, by the module's own names."""
        return self._averages

    def buffers(self) -> list[Tensor]:
        """Returns the averages' copies of the buffers."""
        return [self._averages[name].local for name in self._buffers]

    @torch.no_grad()
    def update(self) -> None:
        """Updates the averages with the current parameters."""
        averages = [self._averages[name].local for name in self._averaged]
        torch._foreach_lerp_(averages, [self._weights[name].local for name in self._averaged], 1.0 - self.decay)
        for name in self._copied:
            source = self._weights[name] if name in self._weights else self._buffers[name]
            self._averages[name].local.copy_(source.local)

    @torch.no_grad()
    def reset(self) -> None:
        """Sets the averages to the current weights and buffers."""
        for name, source in {**self._weights, **self._buffers}.items():
            self._averages[name].local.copy_(source.local)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the module's weights with the averages, in place, so that references to the tensors stay valid."""
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
        raise ConfigError(f"ema_decay={decay}: must be 0 <= ema_decay < 1 (0.999 is usual)")
