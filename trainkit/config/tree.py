"""A configuration as a tree of dicts: its keys, and links (`${key}`) between its nodes."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainkit.errors import ConfigError, nearest

Node = dict[str, Any]
_LINK = re.compile(r"\$\{([\w.]+)\}")
_LONGEST_CHAIN = 10


def flat(config: Mapping[Any, Any], path: str = "") -> dict[str, Any]:
    """Returns every value by its full key.

    Example:
        >>> flat({"recipe": {"batch_size": 8, "model": {}}, "seed": 0})
        {'recipe.batch_size': 8, 'recipe.model': {}, 'seed': 0}
    """
    values: dict[str, Any] = {}
    for key, value in config.items():
        full = f"{path}.{key}" if path else str(key)
        values.update(flat(value, full) if isinstance(value, Mapping) and value else {full: value})
    return values


def keys_of(node: Mapping[Any, Any], path: str = "") -> list[str]:
    """Returns the full name of every key in a tree of dicts.

    Example:
        >>> keys_of({"a": {"b": {"c": 1}}})
        ['a', 'a.b', 'a.b.c']
    """
    keys = []
    for key, value in node.items():
        full = f"{path}.{key}" if path else str(key)
        keys += [full, *(keys_of(value, full) if isinstance(value, dict) else [])]
    return keys


def texts_of(node: Any) -> Iterator[str]:
    """Yields every string among the values of a tree."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from texts_of(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from texts_of(value)


def place(tree: Node, key: str, value: Any, *, is_new: bool = False) -> None:
    """Sets the dotted `key` of an unresolved configuration to `value`; a link on the way is followed to its source.

    Args:
        tree: is changed.
        key: the full name.
        value: what it becomes.
        is_new: makes what is missing on the way; see `adds_key`.

    Raises:
        ConfigError: there is no such key; names the nearest one.
    """
    *path, last = key.split(".")
    node: Any = tree
    for name in path:
        if is_new and isinstance(node, dict):
            node.setdefault(name, {})
        node = _followed(tree, node.get(name) if isinstance(node, dict) else None)
    if not isinstance(node, dict) or (last not in node and not is_new):
        known = keys_of(tree)
        unknown = first_unknown(known, key)
        raise ConfigError(f"{key}={value}: there is no key {unknown!r}.{nearest(unknown, known)}")
    node[last] = value


def adds_key(tree: Mapping[str, Any], key: str) -> bool:
    """Whether the dotted `key` fills a mapping of free keys, which a configuration writes as `{}`.

    Example:
        >>> adds_key({"tracking": {"others": {}}}, "tracking.others.mine._target_")
        True
        >>> adds_key({"tracking": {"others": {}}}, "tracking.jsonl")
        False
    """
    node: Any = tree
    for name in key.split("."):
        if not isinstance(node, Mapping):
            return False
        if name not in node:
            return not node
        node = _followed(tree, node[name])
    return isinstance(node, Mapping) and not node


def first_unknown(known: Iterable[str], key: str) -> str:
    """Returns the shortest beginning of a dotted `key` that is none of the `known` ones.

    Example:
        >>> first_unknown(["data", "data.path"], "data.paths.first")
        'data.paths'
    """
    names = key.split(".")
    beginnings = [".".join(names[: i + 1]) for i in range(len(names))]
    return next((beginning for beginning in beginnings if beginning not in known), key)


def owner(tree: Mapping[str, Any], key: str) -> tuple[Mapping[str, Any], str] | None:
    """Finds the node that has the dotted `key` as its own argument.

    Returns:
        The node and the name of the argument; None where no node has it.
    """
    *path, last = key.split(".")
    node: Any = tree
    for name in path:
        node = _followed(tree, node.get(name) if isinstance(node, Mapping) else None)
    return (node, last) if isinstance(node, Mapping) else None


def source_of(tree: Mapping[str, Any], key: str) -> str:
    """Returns the dotted key to which `key` leads where a node on its way is a link.

    Example:
        >>> source_of({"data": {"path": None}, "recipe": {"data": "${data}"}}, "recipe.data.path")
        'data.path'
    """
    names = key.split(".")
    node: Any = tree
    for i, name in enumerate(names[:-1]):
        node = node.get(name) if isinstance(node, Mapping) else None
        link = _LINK.fullmatch(node) if isinstance(node, str) else None
        if link is not None:
            return source_of(tree, ".".join([link[1], *names[i + 1 :]]))
    return key


def _followed(tree: Mapping[str, Any], node: Any) -> Any:
    """The node that the link `node` leads to; `node` itself where it is no link."""
    for _ in range(_LONGEST_CHAIN):  # a link may lead to a link; `resolve` refuses a circle of them
        link = _LINK.fullmatch(node) if isinstance(node, str) else None
        if link is None:
            return node
        node = tree
        for name in link[1].split("."):
            node = node.get(name) if isinstance(node, Mapping) else None
    return node
