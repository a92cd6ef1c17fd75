"""AdamW: torch's fused AdamW, with masks over weights and copies in low precision."""

from collections.abc import Callable
from typing import Any

import torch

from trainkit.optim.sharded import ShardedOptimizer


class AdamW(ShardedOptimizer, torch.optim.AdamW):
    """`torch.optim.AdamW` with `set_masks` and `set_copies`.

    Masks and copies are applied after the update, in a pass of their own.

    Args:
        args: positional arguments of `torch.optim.AdamW`.
        fused: whether one pass over the parameters is used, on CPUs and GPUs.
        kwargs: keyword arguments of `torch.optim.AdamW`.
    """

    def __init__(self, *args: Any, fused: bool | None = True, **kwargs: Any) -> None:
        super().__init__(*args, fused=fused, **kwargs)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient.

        Args:
            closure: computes the loss again, and returns it.

        Returns:
            What the closure returned; None without one.
        """
        loss = super().step(closure)
        tensors = self._stepped()
        self._mask(tensors)
        self._copy(tensors)
        return loss
