"""Used: the parameters of a module under DeepSpeed that a backward pass has given a gradient."""

from functools import partial

import torch
from torch import Tensor, nn

from trainkit.errors import UsageError


class Used:
    """Requires that a backward pass gives every trained parameter a gradient, as DeepSpeed assumes.

    DeepSpeed reduces the gradients that it gets one after the other in one message, and updates whole partitions.

    Args:
        module: whose parameters are watched.
    """

    def __init__(self, module: nn.Module) -> None:
        self._unused: set[str] = set()
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]
        self._is_watched = False
        for name, p in module.named_parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(partial(self._see, name))

    def begin(self) -> None:
        """Begins a backward pass."""
        self._unused, self._is_watched = set(self._names), False

    def require_all(self) -> None:
        """Checks the backward pass.

        Raises:
            UsageError: where parameters got no gradient.
        """
        if self._unused:
            first = next(name for name in self._names if name in self._unused)
            raise UsageError(
                f"the loss of a micro-batch does not depend on {len(self._unused)} of {len(self._names)} parameters, "
                f"the first is {first!r}, and DeepSpeed would give them a wrong gradient: use strategy=fsdp, or "
                f"strategy=ddp with strategy.find_unused_parameters=true, or set requires_grad=False before setup on "
                f"parameters that are not to be trained"
            )

    def _see(self, name: str, _: Tensor) -> None:
        if not self._is_watched:
            self._is_watched = True
            # At the end of the backward pass, and before DeepSpeed sums over ranks what has not filled a message.
            torch.autograd.Variable._execution_engine.queue_callback(self.require_all)
        self._unused.discard(name)
