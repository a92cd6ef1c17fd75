"""Hyper-parameters of an optimizer's parameter groups, as checkpoints hold them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Groups = list[dict[str, Any]]
_NOT_HYPER = ("params", "param_names")


def hyperparameters(optimizer: torch.optim.Optimizer) -> Groups:
    """The numbers, flags and texts of each group, JSON-able: lr, betas, weight_decay, a scheduler's initial_lr ..."""
    return [
        {
            key: _plain(value)
            for key, value in group.items()
            if key not in _NOT_HYPER and isinstance(_plain(value), int | float | str | list | None)
        }
        for group in optimizer.param_groups
    ]


def restore(optimizer: torch.optim.Optimizer, first: Groups, saved: Mapping[str, Groups]) -> list[str]:
    """Sets what a scheduler, say, has changed since setup to its value in a checkpoint.

    A value that this run was set up with, and that is not the one that the run of the checkpoint was set up with, is
    meant, and stays.

    Args:
        first: the groups as they were at setup.
        saved: `first` and `now` of the run that wrote the checkpoint.

    Returns:
        A line for each value that stays, and was another when the checkpoint was written.
    """
    if len(first) != len(saved["first"]):
        return [f"the optimizer has {len(first)} parameter groups, the checkpoint's {len(saved['first'])}: lr stays"]
    said = []
    for number, (group, mine, before, now) in enumerate(
        zip(optimizer.param_groups, first, saved["first"], saved["now"], strict=True)
    ):
        for key, value in now.items():
            if mine.get(key) == before.get(key):
                _set(group, key, value)
            elif key in group and _plain(group[key]) != value:
                where = f" of group {number}" if len(first) > 1 else ""
                said.append(f"optimizer.{key}{where} is {_plain(group[key])}, and was {value} in the checkpoint")
    return said


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    return [_plain(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _set(group: dict[str, Any], key: str, value: Any) -> None:
    held = group.get(key)
    if isinstance(held, Tensor):
        held.fill_(value)
    elif _plain(held) != value:
        group[key] = tuple(value) if isinstance(held, tuple) else value
