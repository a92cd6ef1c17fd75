"""Use: the parameters of a module under FSDP that a step has given a gradient, on this rank and on all."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from trainkit.errors import UsageError

_IN_BACKWARD = ("PRE_BACKWARD", "POST_BACKWARD")


class Use:
    """Makes every rank reduce the same gradients, and records which parameters this rank has used.

    FSDP reduces the gradients that a unit's parameters have on this rank one after the other in one message, and
    assumes that all ranks have the same ones; otherwise gradients of one parameter are added to another's. Here the
    message holds every parameter of a unit that took part in a backward pass, with zeros where this rank has none.

    Args:
        parameters: by name.
        module: that `fully_shard` was applied to.
        units: its parts that are sharded each by itself.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], module: nn.Module, units: Sequence[FSDPModule]) -> None:
        self._parameters = parameters
        names = {part: name for name, part in module.named_modules()}
        self._groups = [(names[unit], group) for unit in units for group in _groups_of(unit)]
        sharded = {p: name for name, p in parameters.items()}
        self._names = {part: sharded[part.sharded_param] for _, group in self._groups for part in group.fsdp_params}
        self._used: set[str] = set()
        self._num_reductions = [0] * len(self._groups)
        self._is_every_unit = False
        for number, (_, group) in enumerate(self._groups):
            group.post_backward = partial(self._reduce, number, group, group.post_backward)

    @contextmanager
    def of_every_unit(self) -> Iterator[None]:
        """Within it the end of a backward pass reduces every unit that was ever gathered."""
        self._is_every_unit = True
        try:
            yield
        finally:
            self._is_every_unit = False

    def counts(self, device: torch.device) -> Tensor:
        """[n], float64, whose sum over ranks `end` takes."""
        counts = [float(name in self._used) for name in self._parameters]
        if len(self._groups) > 1:
            counts += [float(number) for number in self._num_reductions]
            counts += [float(number**2) for number in self._num_reductions]
        return torch.tensor(counts, dtype=torch.float64, device=device)

    def end(self, sums: Tensor) -> list[str]:
        """Ends a step. On a GPU it waits for the device only where this rank has left a parameter unused.

        Args:
            sums: of `counts` over ranks.

        Returns:
            The parameters that no rank has used.

        Raises:
            UsageError: on ranks that did not run the same units.
        """
        unused = [name for name, p in self._parameters.items() if p.grad is not None and name not in self._used]
        reductions = self._num_reductions
        self._used, self._num_reductions = set(), [0] * len(self._groups)
        if not unused and (len(self._groups) == 1 or sums.device.type != "cpu"):
            return []
        counts = sums.tolist()
        if len(self._groups) > 1:
            self._require_same_units(counts[len(self._parameters) :], reductions)
        by_name = dict(zip(self._parameters, counts, strict=False))
        return [name for name in unused if by_name[name] == 0]

    def gathered(self) -> list[Tensor]:
        """The gathered parameters of units, which gradients are accumulated in."""
        return [part._unsharded_param for part in self._names if _is_trained(part)]

    def show_requires_grad(self) -> None:
        """Copies requires_grad from gathered parameters, which a user sees and may change, to the sharded ones."""
        for part in self._names:
            if part.sharded_state.name == "UNSHARDED":
                is_required = part._unsharded_param.requires_grad
                if part.sharded_param.requires_grad != is_required:
                    part.sharded_param.requires_grad_(is_required)

    def _reduce(self, number: int, group: Any, post_backward: Any, *unused: Any) -> None:
        # FSDP also calls this for units that took no part.
        if group.reduce_grads and (self._is_every_unit or group._training_state.name in _IN_BACKWARD):
            self._num_reductions[number] += 1
            for part in group.fsdp_params:
                if not _is_trained(part):
                    continue
                if part.unsharded_accumulated_grad is not None or part.unsharded_param.grad is not None:
                    self._used.add(self._names[part])
                else:
                    part.unsharded_param.grad = torch.zeros_like(part.unsharded_param)
        post_backward(*unused)

    def _require_same_units(self, sums: Sequence[float], reductions: Sequence[int]) -> None:
        num = len(self._groups)
        for (name, _), total, squares, mine in zip(self._groups, sums[:num], sums[num:], reductions, strict=True):
            # Equal on all ranks if and only if their variance is zero.
            if dist.get_world_size() * squares != total**2:
                raise UsageError(
                    f"{name!r} took part in the backward pass of this step {mine} times on rank {dist.get_rank()}, and "
                    f"not as often on every rank; FSDP gathers and reduces a block on all ranks together: run every "
                    f"block on every rank, or set strategy.per_block=false"
                )


def _is_trained(part: Any) -> bool:
    """Whether a parameter that was gathered requires a gradient."""
    return hasattr(part, "_unsharded_param") and part._unsharded_param.requires_grad


def _groups_of(unit: FSDPModule) -> Sequence[Any]:
    state = unit._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    group = state._fsdp_param_group  # torch 2.11
    return [] if group is None else [group]
