"""Trust: which callables a stored configuration may name. A checkpoint may come from anybody, and names are code."""

import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch

from trainkit.config.recipes import require_link
from trainkit.config.tree import texts_of
from trainkit.data import Datasets, Examples, Images, Mixture, NvidiaBert, Text, UnpairedImages
from trainkit.encryption import Encryption
from trainkit.errors import UntrustedError
from trainkit.ops.switch import Ops
from trainkit.optim import Schedule
from trainkit.precision import Precision
from trainkit.recipe import Recipe
from trainkit.reduction.comm import Comm
from trainkit.strategy import Strategy
from trainkit.tracking import Tracker
from trainkit.training.memory_budget import MemoryBudget

KINDS: dict[str, tuple[type, ...]] = {
    "recipe": (Recipe,),
    "data": (Text, Images, UnpairedImages, Mixture, Examples, NvidiaBert, Datasets),
    "optimizer": (torch.optim.Optimizer,),
    "schedule": (Schedule,),
    "strategy": (Strategy,),
    "comm": (Comm,),
    "precision": (Precision,),
    "ops": (Ops,),
    "tracking": (Tracker,),
    "checkpoint": (Encryption,),
    "memory": (MemoryBudget,),
}
"""What the `_target_` of each node makes; the nodes of a recipe that are called so, too."""

_OURS = ("trainkit", "trainkit_recipes")
_NAME = re.compile(r"(trainkit|trainkit_recipes|torch\.optim)(\.[A-Za-z]\w*)+")  # no segment begins with _
_INTERPOLATION = re.compile(r"\$\{[^}]*\}?")
# To another key, perhaps with a plain value where that is missing; and not any other resolver, such as oc.env.
_LINK = re.compile(r"\$\{([A-Za-z][\w.]*|oc\.select:[A-Za-z][\w.]*,\w+)\}")
_PROGRAMS = (".pt", ".pth", ".ts", ".jit")
_ROOT = Path(__file__).resolve().parent.parent.parent


def require_ours(config: Mapping[str, Any]) -> None:
    """Requires that every callable in `config` is of trainkit, its recipes or torch.optim, and fits its key.

    Imports nothing else.

    Raises:
        UntrustedError: naming the callable that is not.
    """
    for text in texts_of(config.get("recipe")):
        if text.lower().endswith(_PROGRAMS):
            raise UntrustedError(f"{text}, a TorchScript program, in the stored configuration")
    for text in texts_of(config):
        for found in _INTERPOLATION.findall(text):
            if not _LINK.fullmatch(found):
                raise UntrustedError(f"{found} in the stored configuration")
    for key, node in config.items():
        _require(key, node, KINDS.get(key, ()))
    keys = config.get("strategy")
    if isinstance(keys, Mapping) and keys.get("config"):
        raise UntrustedError(f"strategy.config={keys['config']!r}, keys that DeepSpeed acts upon,")


def _require(path: str, node: Any, kinds: tuple[type, ...]) -> None:
    if isinstance(node, list | tuple):
        for i, item in enumerate(node):
            _require(f"{path}[{i}]", item, ())
    if not isinstance(node, Mapping):
        return
    special = [key for key in node if isinstance(key, str) and key.startswith("_") and key.endswith("_")]
    for key in special:
        if key not in ("_target_", "_partial_"):
            raise UntrustedError(f"{path}.{key}={node[key]!r}")
    target = _of_kind(path, node["_target_"], kinds) if "_target_" in special else None
    hints = _hints(target) if target is not None else {}
    for key, value in node.items():
        _require(f"{path}.{key}", value, _kinds_of(key, hints) if target is not None else ())


def _of_kind(path: str, name: Any, kinds: tuple[type, ...]) -> Callable[..., Any]:
    """The callable called `name`, if calling it makes one of `kinds`."""
    refused = UntrustedError(f"{path}._target_={name}")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not kinds:
        raise refused
    module, _, attribute = name.rpartition(".")
    if name.startswith("trainkit_recipes.") and not _recipes_are_ours():
        raise UntrustedError(f"{path}._target_={name}, in a package `trainkit_recipes` that is not trainkit's,")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise refused from error
    if isinstance(found, type):
        is_ours = found.__module__.partition(".")[0] in _OURS or found.__module__.startswith("torch.optim")
        is_right = is_ours and issubclass(found, kinds)
    else:
        made = _hints(found).get("return") if inspect.isfunction(found) else None
        is_ours = inspect.isfunction(found) and found.__module__.partition(".")[0] in _OURS
        is_right = is_ours and isinstance(made, type) and issubclass(made, kinds)
    if not is_right:
        raise refused
    trusted: Callable[..., Any] = found
    return trusted


def _kinds_of(key: Any, hints: Mapping[str, Any]) -> tuple[type, ...]:
    """What the argument `key` of a callable takes: classes of ours in its annotation, or of the node of that name."""
    annotation = hints.get(key)
    classes = tuple(
        member
        for member in (annotation, *get_args(annotation))
        if isinstance(member, type) and member.__module__.partition(".")[0] in _OURS
    )
    return classes or KINDS.get(key, ())


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return get_type_hints(function)
    except (NameError, TypeError):
        return {}  # annotations for type checkers only: then no nested callable is expected


def _recipes_are_ours() -> bool:
    require_link()
    spec = importlib.util.find_spec("trainkit_recipes")
    return spec is not None and [Path(p).resolve() for p in spec.submodule_search_locations or ()] == [
        (_ROOT / "trainkit_recipes").resolve()
    ]
