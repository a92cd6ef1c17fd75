"""What PyTorch's optimizers do for torch.compile alone, left out where nothing is compiled.

Whoever makes or steps one imports torch._dynamo, which takes as long as the import of torch, only to keep the optimizer
out of compiled graphs.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import _use_grad_for_differentiable


def _nothing(self: Any) -> None:
    raise NotImplementedError


_OF_STEPS = _use_grad_for_differentiable(_nothing).__code__
_OF_METHODS = torch._disable_dynamo(_nothing).__code__


@contextmanager
def not_imported_by_optimizers() -> Iterator[None]:
    """Optimizers are made without an import of torch._dynamo; once it is imported, they are made as usual."""
    usual = Optimizer.add_param_group
    if _code_of(usual) is not _OF_METHODS:  # another version of PyTorch, or a wrapper of another library
        yield
        return
    plain = _wrapped_in(usual)

    @functools.wraps(plain)
    def add_param_group(self: Optimizer, param_group: dict[str, Any]) -> None:
        (usual if "torch._dynamo" in sys.modules else plain)(self, param_group)

    Optimizer.add_param_group = add_param_group  # type: ignore[method-assign]
    try:
        yield
    finally:
        Optimizer.add_param_group = usual  # type: ignore[method-assign]


def run(step: Callable[[Any], Any], optimizer: Optimizer) -> None:
    """Calls an optimizer's step without the breaks of the graph around it, with gradients recorded as they ask for.

    Args:
        step: a function of the optimizer.
        optimizer: given to it.
    """
    if _code_of(step) is not _OF_STEPS or torch.compiler.is_compiling():
        step(optimizer)
        return
    with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
        _wrapped_in(step)(optimizer)


def _code_of(function: Any) -> Any:
    return getattr(function, "__code__", None)


def _wrapped_in(function: Any) -> Callable[..., Any]:
    wrapped: Callable[..., Any] = function.__wrapped__
    return wrapped
