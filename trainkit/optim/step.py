"""Step: an optimizer's step, without what PyTorch wraps around it for hooks and its profiler, where there are none."""

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from trainkit.optim import dynamo

# Its code object: `functools.wraps` copies every mark that the wrapper has onto a user's own `step`.
_WRAPPER = Optimizer.profile_hook_step(lambda self: None).__code__


def step(optimizer: Optimizer) -> None:
    """Calls `optimizer.step()`, directly where that makes no difference.

    PyTorch wraps the `step` of every optimizer class in a function that runs hooks and opens a range of the profiler.
    For a small model it takes as long as the update itself.
    """
    method = type(optimizer).step
    if getattr(method, "__code__", None) is _WRAPPER and not _is_observed(optimizer):
        dynamo.run(method.__wrapped__, optimizer)  # type: ignore[attr-defined]
    else:
        optimizer.step()


def _is_observed(optimizer: Optimizer) -> bool:
    return bool(
        "step" in vars(optimizer)
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or torch.autograd._profiler_enabled()
    )
