"""OptimizerSource: makes an engine's optimizer once a strategy has replaced the module's parameters."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainkit.errors import ConfigError, UsageError

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class OptimizerSource:
    """An optimizer without state, or a function that makes one from parameter groups.

    Args:
        module: whose parameters are optimized.
        optimizer: an optimizer without state over them, or a function of parameter groups.
        engine_name: for messages.

    Raises:
        ConfigError: where the optimizer lacks a trainable parameter, or has one of another module.
        UsageError: where it has state.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer | OptimizerFactory, *, engine_name: str
    ) -> None:
        self.module, self.engine_name = module, engine_name
        self._instance: torch.optim.Optimizer | None = None
        self._factory: OptimizerFactory | None = None
        if not any(p.requires_grad for p in module.parameters()):
            raise ConfigError(f"the module of engine {engine_name!r} has no parameter that requires a gradient")
        if not isinstance(optimizer, torch.optim.Optimizer):
            self._factory = optimizer
            return
        self._has_first_state = bool(optimizer.state)
        if any(float(state.get("step", 1)) != 0 for state in optimizer.state.values()):
            raise UsageError(
                f"the optimizer of engine {engine_name!r} has state: give a new one, inherit= the engine it was in, "
                f"or a function of parameter groups that makes one"
            )
        self._instance = optimizer
        self._require_fitting(optimizer)
        names = {p: name for name, p in module.named_parameters()}
        self._names = [[names[p] for p in group["params"]] for group in optimizer.param_groups]

    def make(self) -> torch.optim.Optimizer:
        """Returns the optimizer of the module's current parameters."""
        if self._factory is not None:
            try:
                made = self._factory([{"params": [p for p in self.module.parameters() if p.requires_grad]}])
            except ConfigError:
                raise
            except ValueError as error:
                raise ConfigError(f"the optimizer of engine {self.engine_name!r} cannot be made: {error}") from error
            self._require_fitting(made)
            return made
        assert self._instance is not None
        parameters = dict(self.module.named_parameters())
        for group, names in zip(self._instance.param_groups, self._names, strict=True):
            group["params"] = [parameters[name] for name in names]
        if self._has_first_state:  # Adagrad's, made for the earlier parameters
            type(self._instance).__init__(self._instance, self._instance.param_groups, **arguments_of(self._instance))
        return self._instance

    def example(self) -> torch.optim.Optimizer:
        """Returns an optimizer of the kind that `make` makes, over the module's current parameters."""
        return self._instance if self._instance is not None else self.make()

    def _require_fitting(self, optimizer: torch.optim.Optimizer) -> None:
        held = {p for group in optimizer.param_groups for p in group["params"]}
        missing = [name for name, p in self.module.named_parameters() if p.requires_grad and p not in held]
        if missing:
            raise ConfigError(
                f"the optimizer of engine {self.engine_name!r} lacks {len(missing)} parameters, such as {missing[0]!r}"
            )
        if held - set(self.module.parameters()):
            raise ConfigError(f"the optimizer of engine {self.engine_name!r} holds parameters of another module")


def arguments_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the keyword arguments that make another optimizer of the same class and settings, without parameters."""
    taken = inspect.signature(type(optimizer)).parameters
    return {key: value for key, value in optimizer.defaults.items() if key in taken}
