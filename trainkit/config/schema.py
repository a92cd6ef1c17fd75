"""Schema: the keys of `conf/train.yaml` and their types, which are those of the arguments of Runtime and Trainer."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from trainkit.config.directory import groups
from trainkit.config.targets import hints, locate
from trainkit.config.tree import Node, owner
from trainkit.errors import ConfigError

# By name, as nodes name their targets: all are of layers above this one.
_TARGETS = (
    *("trainkit.Runtime", "trainkit.Trainer"),
    *("trainkit.training.leakage.look", "trainkit.training.machines.look_at_machines"),
)
_OF_A_JOB = {"runtime", "make_recipe", "tracker", "config", "composed", "found"}
"""Arguments that a job makes by itself."""
_OPTIONAL = {"schedule"}
OF_RECIPES: Mapping[str, Any] = {"weights": Path | None}
"""Keys that recipes link to, and not every recipe has."""
_NO_KEYS = {"experiment"}
"""Groups whose options change other keys."""


@cache
def annotations() -> Mapping[str, Any]:
    """Returns the annotation of every key of `conf/train.yaml`.

    A group's is a node, which is held against the signature of its `_target_`; every other is that of the argument of
    Runtime, of Trainer, of the audit or of the check of machines with this name, or of `OF_RECIPES`.
    """
    found: dict[str, Any] = {
        name: Node | None if name in _OPTIONAL else Node for name in groups() if name not in _NO_KEYS
    }
    for target in _TARGETS:
        function = locate("", target)
        known = hints(function)
        for name in inspect.signature(function).parameters:
            if name not in _OF_A_JOB:
                found.setdefault(name, known[name])
    return {**found, **OF_RECIPES}


def arguments_of(target: Callable[..., Any]) -> list[str]:
    """Returns the keys of `conf/train.yaml` that are keyword arguments of `target`.

    Example:
        >>> from trainkit import Trainer
        >>> arguments_of(Trainer)[:2]
        ['evaluate_every', 'save_every']
    """
    parameters = inspect.signature(target).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in annotations()]


def may_be_null(group: str) -> bool:
    """Whether none of the options of `group` may be chosen."""
    return group in _OPTIONAL | _NO_KEYS


def takes_text(tree: Mapping[str, Any], key: str) -> bool:
    """Whether the argument at the dotted `key` is annotated as text or a path, and as nothing else."""
    found = owner(tree, key)
    if found is None:
        return False
    node, name = found
    if node is tree:
        return is_text(annotations().get(name, Any))
    try:
        return is_text(hints(locate(key, node["_target_"])).get(name, Any))
    except (KeyError, ConfigError):
        return False  # no arguments of a callable, or none that can be imported: `check` says so


def is_text(annotation: Any) -> bool:
    """Whether `annotation` takes text or a path, and nothing else.

    Example:
        >>> is_text(str | None), is_text(str | int)
        (True, False)
    """
    kinds = {member for member in members(annotation) if member is not NoneType and get_origin(member) is not Literal}
    return bool(kinds) and kinds <= {str, Path}


def members(annotation: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
