"""Hyper-parameters of an optimizer's parameter groups, as stored in checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Groups = list[dict[str, Any]]
_NOT_HYPER = ("params", "param_names")


def hyperparameters(optimizer: torch.optim.Optimizer) -> Groups:
    """Returns the JSON-serializable values of each group: lr, betas, weight_decay, a scheduler's initial_lr ..."""
    return [
        {
            key: _plain(value)
            for key, value in group.items()
            if key not in _NOT_HYPER and isinstance(_plain(value), int | float | str | list | None)
        }
        for group in optimizer.param_groups
    ]


def restore(optimizer: torch.optim.Optimizer, first: Groups, saved: Mapping[str, Groups]) -> list[str]:
    """Restores values that changed after setup, such as by a scheduler, from a checkpoint.

    A value that this run was set up with, and that differs from the setup of the checkpoint's run, was changed on
    purpose and stays; with lr stay the rates from which a scheduler continues. Groups that were added after setup take
    the checkpoint's values.

    Args:
        optimizer: the optimizer.
        first: its groups as they were at setup.
        saved: `first` and `now` of the run that wrote the checkpoint.

    Returns:
        A line for each value that stays, and differs from the checkpoint.
    """
    if len(first) != len(saved["first"]):
        return [f"the optimizer has {len(first)} parameter groups, the checkpoint's {len(saved['first'])}: lr stays"]
    num_now, num_saved = len(optimizer.param_groups), len(saved["now"])
    notes = [f"the optimizer has {num_now} parameter groups, the checkpoint's {num_saved}: the others stay as they are"]
    notes = notes if num_now != num_saved else []
    added: Groups = [{}] * min(num_now, num_saved)
    both = zip(optimizer.param_groups, saved["now"], [*first, *added], [*saved["first"], *added], strict=False)
    for number, (group, now, mine, before) in enumerate(both):
        for key, value in now.items():
            source_key = "lr" if key.endswith("_lr") else key
            if mine.get(source_key) == before.get(source_key):
                _set(group, key, value)
            elif key in group and _plain(group[key]) != value:
                where = f" of group {number}" if len(first) > 1 else ""
                notes.append(f"optimizer.{key}{where} is {_plain(group[key])}, and was {value} in the checkpoint")
    return notes


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        return value.item()
    return [_plain(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _set(group: dict[str, Any], key: str, value: Any) -> None:
    held = group.get(key)
    if isinstance(held, Tensor):
        held.fill_(value)
    elif _plain(held) != value:
        group[key] = tuple(value) if isinstance(held, tuple) else value
