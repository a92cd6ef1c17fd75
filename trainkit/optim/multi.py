"""MultiOptimizer: several optimizers of one module as one."""

from collections.abc import Callable
from typing import Any

import torch

from trainkit.errors import ConfigError
from trainkit.optim.sharded import ShardedOptimizer

_OWNER = "optimizer"


class MultiOptimizer(torch.optim.Optimizer):
    """Several optimizers of different parameters of one module as one, with the parameter groups of all.

    The key `optimizer` of every group is the number of the optimizer that updates it. Learning rates, schedules,
    clipping and checkpoints work as for any optimizer. Under a strategy that shards, each must treat every element
    independently.

    Args:
        optimizers: two or more without state, which share no parameter. They must not be stepped by themselves.

    Raises:
        ConfigError: for one that has state already, or that needs to know the parameters in its tensors, such as
            `trainkit.optim.Lamb`.

    Example:
        >>> embedding, matrix = torch.nn.Parameter(torch.zeros(8, 2)), torch.nn.Parameter(torch.zeros(2, 2))
        >>> muon, adam = torch.optim.Muon([matrix], lr=0.02), torch.optim.AdamW([embedding], lr=1e-3)
        >>> [(group["optimizer"], group["lr"]) for group in MultiOptimizer(muon, adam).param_groups]
        [(0, 0.02), (1, 0.001)]
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        if len(optimizers) < 2:
            raise ConfigError(f"MultiOptimizer({len(optimizers)} optimizers): takes two or more")
        for optimizer in optimizers:
            if isinstance(optimizer, ShardedOptimizer):
                raise ConfigError(
                    f"MultiOptimizer does not take {type(optimizer).__module__}.{type(optimizer).__name__}: use one "
                    f"of torch.optim, such as torch.optim.AdamW"
                )
            if optimizer.state:
                raise ConfigError(f"MultiOptimizer takes optimizers without state, and {_name(optimizer)} has some")
        self.optimizers = optimizers
        groups = [{**group, _OWNER: number} for number, part in enumerate(optimizers) for group in part.param_groups]
        try:
            super().__init__(groups, {})
        except ValueError as error:
            raise ConfigError(f"MultiOptimizer({', '.join(map(_name, optimizers))}): {error}") from error
        if any(getattr(part, "needs_whole_parameters", False) for part in optimizers):
            self.needs_whole_parameters = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group.

        Args:
            param_group: as for any optimizer; its `optimizer` is the number of the one that updates it.

        Raises:
            ConfigError: for a number that no optimizer has.
        """
        number = param_group.get(_OWNER)
        if not (isinstance(number, int) and 0 <= number < len(self.optimizers)):
            known = ", ".join(f"{number} ({_name(part)})" for number, part in enumerate(self.optimizers))
            raise ConfigError(f"a parameter group with {_OWNER}={number!r}: must be one of {known}")
        for key, value in self.optimizers[number].defaults.items():
            param_group.setdefault(key, value)
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps each optimizer.

        Args:
            closure: computes the loss again, and returns it; called once.

        Returns:
            What the closure returned; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, part in enumerate(self.optimizers):
            # Set in every step: DeepSpeed presents one group at a time, and loading a state makes new objects.
            part.param_groups = [group for group in self.param_groups if group[_OWNER] == number]
            part.state = self.state
            if part.param_groups:
                part.step()
        return loss


def _name(optimizer: torch.optim.Optimizer) -> str:
    return type(optimizer).__name__
