"""Averaged weights: an exponential moving average of a module's parameters."""

import torch
from torch import Tensor, nn

from trainkit.errors import ConfigError


class Average:
    """average = decay * average + (1 - decay) * parameter after every update; buffers are copied.

    `decay` in [0, 1); raises ConfigError otherwise. Held in the parameters' own dtype.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"ema={decay}: allowed is 0 <= ema < 1 (0.999 is usual)")
        self.decay = decay
        self._parameters = dict(module.named_parameters())
        persistent = module.state_dict(keep_vars=True)
        self._buffers = {name: buffer for name, buffer in module.named_buffers() if name in persistent}
        self._tensors = {name: p.detach().clone() for name, p in self._sources().items()}

    def _sources(self) -> dict[str, Tensor]:
        return {**self._parameters, **self._buffers}

    def tensors(self) -> dict[str, Tensor]:
        """The averages by the module's own names."""
        return self._tensors

    @torch.no_grad()
    def update(self) -> None:
        """Takes the parameters as they are now into the average."""
        averages = [self._tensors[name] for name in self._parameters]
        torch._foreach_lerp_(averages, list(self._parameters.values()), 1.0 - self.decay)
        for name, buffer in self._buffers.items():
            self._tensors[name].copy_(buffer)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the module's weights with the averages, by pointer."""
        for name, source in self._sources().items():
            source.data, self._tensors[name] = self._tensors[name], source.data

    @torch.no_grad()
    def inherit(self, averages: dict[str, Tensor]) -> None:
        """Takes over the averages of the same name and shape; the others start at the parameters' present values."""
        for name, tensor in self._tensors.items():
            if name in averages and averages[name].shape == tensor.shape:
                tensor.copy_(averages[name])
