"""Blocks: the repeated parts of a module, compiled or checkpointed. Names of parameters stay."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainkit.errors import ConfigError, nearest
from trainkit.ops.dropout import Dropout, drop

Forward = Callable[..., Any]


class Checkpointed:
    """Activation checkpointing of the instances of some classes.

    Args:
        class_names: an instance of these keeps its inputs only, and is computed again in the backward pass.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = tuple(class_names)
        self._present: set[str] = set()

    def apply(self, module: nn.Module) -> None:
        """Checkpoints the parts of `module` of these classes."""
        if not self._names:
            return
        parts = [part for part in module.modules() if type(part).__name__ in self._names]
        self._present |= {type(part).__name__ for part in module.modules()}
        replace_forward(parts, "checkpointed", _checkpointed)

    def require_all_found(self) -> None:
        """Checks the names.

        Raises:
            ConfigError: for a class of which no module that was set up has an instance.
        """
        for name in set(self._names) - self._present:
            raise ConfigError(
                f"activation_checkpointing={name}: no module has a part of that class; there are "
                f"{', '.join(sorted(self._present))}.{nearest(name, self._present)}"
            )


def compile_blocks(module: nn.Module, blocks: Sequence[type[nn.Module]]) -> None:
    """Compiles every part of a class in `blocks`, or without any the whole module, at its first call."""
    # torch.compile would recompile it for every layer and every forward pass of a step.
    Dropout.drop = staticmethod(torch.compiler.disable(drop))
    parts = [part for part in module.modules() if isinstance(part, tuple(blocks))]
    replace_forward(parts or [module], "compiled", torch.compile)


def eagerly() -> AbstractContextManager[Any]:
    """A context in which compiled parts run uncompiled: compiled code can be differentiated only once."""
    stance: AbstractContextManager[Any, bool | None] = torch.compiler.set_stance("force_eager")
    return stance


def check_compiler(device: torch.device) -> None:
    """Checks that torch.compile has a compiler for `device`.

    Raises:
        ConfigError: where it has none.
    """
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError("compile=true: this torch has no Triton to compile for the GPU; use compile=false")
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise ConfigError("compile=true: there is no C++ compiler: install g++, or use compile=false")


def replace_forward(parts: Sequence[nn.Module], mark: str, make: Callable[[Forward], Forward]) -> None:
    """Changes the class of modules to a subclass with another forward, so that names, copies and isinstance still work.

    Args:
        parts: modules.
        mark: names the change, which is made once for each module.
        make: of the old forward, the new one.
    """
    derived: dict[type[nn.Module], type[nn.Module]] = {}
    for part in parts:
        kind = type(part)
        if mark in kind.__dict__.get("_trainkit_marks", ()):
            continue
        if kind not in derived:
            marks = (*getattr(kind, "_trainkit_marks", ()), mark)
            names = {"forward": make(kind.forward), "_trainkit_marks": marks, "__module__": kind.__module__}
            derived[kind] = type(kind.__name__, (kind,), names)
        part.__class__ = derived[kind]


def _checkpointed(forward: Forward) -> Forward:
    def compute_twice(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(self, *args, **kwargs)
        seen = list(_seen(self))

        def compute(*args: Any, **kwargs: Any) -> Any:
            # At the second time the layers may have the positions of another forward pass.
            for layer, value in seen:
                layer.seen = value
            return forward(self, *args, **kwargs)

        return checkpoint(compute, *args, use_reentrant=False, **kwargs)

    return compute_twice


def _seen(module: nn.Module) -> Iterator[tuple[Dropout, Any]]:
    for part in module.modules():
        if isinstance(part, Dropout):
            yield part, part.seen
