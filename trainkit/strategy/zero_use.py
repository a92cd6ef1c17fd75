"""Used: which parameters of a module under DeepSpeed a backward pass has given a gradient."""

from functools import partial

import torch
from torch import Tensor, nn

from trainkit.errors import UsageError


class Used:
    """The parameters that a backward pass gives a gradient, which must be all: DeepSpeed takes it that they are.

    It sums what it gets, one after the other in one message, and updates all of what lies in a partition.
    """

    def __init__(self, module: nn.Module) -> None:
        self._unused: set[str] = set()
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]
        self._is_watched = False
        for name, p in module.named_parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(partial(self._see, name))

    def begin(self) -> None:
        """A backward pass begins."""
        self._unused, self._is_watched = set(self._names), False

    def require_all(self) -> None:
        """Raises UsageError where parameters got no gradient in this backward pass."""
        if self._unused:
            first = next(name for name in self._names if name in self._unused)
            raise UsageError(
                f"the loss of a micro-batch does not depend on {len(self._unused)} of {len(self._names)} parameters, "
                f"the first is {first!r}, and DeepSpeed would give them a wrong gradient: use strategy=fsdp, or "
                f"strategy=ddp with strategy.find_unused_parameters=true, or set requires_grad=False before setup on "
                f"what is not to be trained"
            )

    def _see(self, name: str, _: Tensor) -> None:
        if not self._is_watched:
            self._is_watched = True
            # At the end of the backward pass, and before DeepSpeed sums over ranks what has not filled a message.
            torch.autograd.Variable._execution_engine.queue_callback(self.require_all)
        self._unused.discard(name)
