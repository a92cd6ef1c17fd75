"""Overrides: `key=value` as a user types it, read by Hydra's grammar, or as it stands where that cannot read it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from trainkit.errors import ConfigError, nearest

_LINK = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Override:
    """key: without `+` and `~`.  value: as the grammar reads it.  raw: what was typed after the `=`.
    text: the override that Hydra is given: the value in quotes where the grammar could not read it."""

    key: str
    value: Any
    raw: str
    text: str

    @property
    def is_a_guess(self) -> bool:
        """Whether the value was read as a number, a list or a mapping, and could be meant as text."""
        return self.value is not None and not isinstance(self.value, str)


def read(overrides: Sequence[str]) -> list[Override]:
    """`overrides` by Hydra's grammar; a value that it cannot read, or takes for a sweep, is text as it stands.

    Raises ConfigError for what is not of the form key=value.
    """
    parser = OverridesParser.create()
    return [_read(parser, override) for override in overrides]


def quoted(value: str) -> str:
    """`value` in the grammar's quotes, which it reads back as it was."""
    # Backslashes count only before a quote or an interpolation, where each is written twice.
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


def place(tree: dict[str, Any], key: str, value: Any) -> None:
    """Puts `value` at the dotted `key` of an unresolved configuration; a node that is a link is changed at its source.

    Raises ConfigError naming the nearest key where there is no such one.
    """
    *path, last = key.split(".")
    node: Any = tree
    for name in path:
        node = _followed(tree, node.get(name) if isinstance(node, dict) else None)
    if not isinstance(node, dict) or last not in node:
        raise ConfigError(f"{key}={value}: there is no key {key!r}.{nearest(key, keys_of(tree))}")
    node[last] = value


def owner(tree: Mapping[str, Any], key: str) -> tuple[Mapping[str, Any], str] | None:
    """The node that has the dotted `key` as its own argument, and the argument's name; None where none has."""
    *path, last = key.split(".")
    node: Any = tree
    for name in path:
        node = _followed(tree, node.get(name) if isinstance(node, Mapping) else None)
    return (node, last) if isinstance(node, Mapping) else None


def source_of(tree: Mapping[str, Any], key: str) -> str:
    """The dotted `key`, of what a link on its way leads to.

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


def keys_of(node: Mapping[Any, Any], path: str = "") -> list[str]:
    """`a`, `a.b`, `a.b.c` ...: the full name of every key in a tree of dicts."""
    keys = []
    for key, value in node.items():
        full = f"{path}.{key}" if path else str(key)
        keys += [full, *(keys_of(value, full) if isinstance(value, dict) else [])]
    return keys


def texts_of(node: Any) -> Iterator[str]:
    """Every string among the values of a tree."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from texts_of(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from texts_of(value)


def _read(parser: OverridesParser, override: str) -> Override:
    head, equals, raw = override.partition("=")
    key = head.strip().lstrip("+~")
    if not equals and not head.startswith("~"):
        raise ConfigError(f"{override!r} is not of the form key=value, such as recipe=bert or recipe.batch_size=32")
    try:
        parsed = parser.parse_override(override)
    except HydraException:
        parsed = None
    if parsed is not None and not parsed.is_sweep_override():
        return Override(key, parsed.value(), raw, override)
    text = f"{head}={quoted(raw)}"
    try:
        parser.parse_override(text)
    except HydraException as error:
        raise ConfigError(
            f"{override!r} is not of the form key=value: {key!r} is no key, such as data.path or recipe.batch_size"
        ) from error
    return Override(key, raw, raw, text)


def _followed(tree: Mapping[str, Any], node: Any) -> Any:
    """What `node` is a link to, itself where it is none."""
    for _ in range(10):  # a link may lead to a link; a circle of them is none of our business
        link = _LINK.fullmatch(node) if isinstance(node, str) else None
        if link is None:
            return node
        node = tree
        for name in link[1].split("."):
            node = node.get(name) if isinstance(node, Mapping) else None
    return node
