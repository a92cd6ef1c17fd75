"""Checking: a configuration is held against the signatures of what it names, before anything starts."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainkit.config.directory import groups
from trainkit.config.schema import OF_RECIPES, annotations
from trainkit.config.targets import hints, is_node, locate
from trainkit.config.tree import Node, flat
from trainkit.config.values import annotation_of_items, convert, holds_node
from trainkit.errors import ConfigError, nearest

_GIVEN = ("self", "runtime")
"""Arguments that a job gives."""


def check(config: Mapping[str, Any]) -> Node:
    """Converts every value to its type; the arguments of every node are held against its `_target_`'s signature.

    Args:
        config: resolved, as `compose` returns it.

    Returns:
        The same keys, in the order of the schema, to be given to `build`, Runtime and Trainer.

    Raises:
        ConfigError: naming the key, the value, what is allowed, and the nearest valid name.
    """
    schema = annotations()
    config = {**dict.fromkeys(OF_RECIPES), **config}  # a stored one may be older than these keys
    _require_known("", config, list(schema))
    of_recipe = {key.rpartition(".")[2]: value for key, value in flat(config.get("recipe") or {}).items()}
    for name in OF_RECIPES:
        # Not only at its top: a node of the recipe may hold the link.
        if config[name] is not None and of_recipe.get(name) != config[name]:
            raise ConfigError(f"{name}={config[name]}: this recipe has no {name}; leave it out, or use recipe=bert")
    for name in schema:
        if name not in config:
            raise ConfigError(f"{name} is missing from the configuration")
    known = groups()
    values = {name: _checked(name, config[name], of) for name, of in schema.items() if name not in known}
    nodes = {name: convert(name, config[name], of) for name, of in schema.items() if name in known}
    _require_usable_targets(nodes)
    return {**{name: node and checked_node(name, node) for name, node in nodes.items()}, **values}


def _require_usable_targets(nodes: Mapping[str, Any]) -> None:
    """Refuses optimizers and schedules that do not fit an engine, before their arguments are held against another's."""
    target = (nodes["optimizer"] or {}).get("_target_")
    step = getattr(locate("optimizer", target), "step", None) if target else None
    closure = inspect.signature(step).parameters.get("closure") if step is not None else None
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(
            f"optimizer._target_={target}: it evaluates the loss several times in a step, and an engine's step has one "
            f"gradient; use another, such as optimizer=adamw"
        )
    target = (nodes["schedule"] or {}).get("_target_")
    if target and "optimizer" in inspect.signature(locate("schedule", target)).parameters:
        raise ConfigError(
            f"schedule._target_={target}: it sets rates step by step, and a schedule here is a function of the "
            f"position in the data; it must be schedule={', '.join(groups()['schedule'])}, or null"
        )


def checked_node(path: str, node: Node) -> Node:
    """Converts the values of a node to the types that the signature of its `_target_` gives them.

    Args:
        path: the key of the node, for messages.
        node: resolved; one without `_target_` is a mapping of nodes and values.

    Raises:
        ConfigError: as for `check`.
    """
    if not is_node(node):
        return {key: _checked(f"{path}.{key}", value, Any) for key, value in node.items()}
    target = locate(path, node["_target_"])
    parameters = inspect.signature(target).parameters
    given = {key: value for key, value in node.items() if not (key.startswith("_") and key.endswith("_"))}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        _require_known(path, given, [name for name in parameters if name not in _GIVEN])
    known = hints(target)
    checked = {key: value for key, value in node.items() if key not in given}
    for key, value in given.items():
        checked[key] = _checked(f"{path}.{key}", value, known.get(key, Any))
    if not node.get("_partial_"):
        _require_all(path, parameters, given)
    return checked


def _checked(path: str, value: Any, annotation: Any) -> Any:
    """`value` as `annotation` says; nodes in it are checked by themselves, and are built later."""
    if is_node(value):
        return checked_node(path, value)
    if not holds_node(value):
        return convert(path, value, annotation)
    items = annotation_of_items(path, value, annotation)
    if isinstance(value, dict):
        return {key: _checked(f"{path}.{key}", item, items) for key, item in value.items()}
    return [_checked(f"{path}[{i}]", item, items) for i, item in enumerate(value)]


def _require_known(path: str, given: Iterable[str], allowed: Sequence[str]) -> None:
    for key in given:
        if key not in allowed:
            full = f"{path}.{key}" if path else key
            raise ConfigError(
                f"{full}: there is no such key; {path or 'the configuration'} has {', '.join(allowed)}."
                f"{nearest(key, allowed)}"
            )


def _require_all(path: str, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> None:
    for name, parameter in parameters.items():
        is_named = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if is_named and parameter.default is parameter.empty and name not in given and name not in _GIVEN:
            raise ConfigError(f"{path}.{name} is missing: give {path}.{name}=...")
