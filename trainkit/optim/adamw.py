"""AdamW: torch's own, fused, which also keeps masked weights at 0 and writes copies in low precision."""

from collections.abc import Callable
from typing import Any

import torch

from trainkit.optim.pieces import PiecewiseOptimizer


class AdamW(PiecewiseOptimizer, torch.optim.AdamW):
    """`torch.optim.AdamW` with all its arguments, and with `set_masks` and `set_copies`.

    `fused` is on unless it is given: one pass over the parameters, on CPUs and GPUs. Masks and copies are applied
    after it, in a pass of their own.
    """

    def __init__(self, *args: Any, fused: bool | None = True, **kwargs: Any) -> None:
        super().__init__(*args, fused=fused, **kwargs)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = super().step(closure)
        tensors = self._stepped()
        self._mask(tensors)
        self._copy(tensors)
        return loss
