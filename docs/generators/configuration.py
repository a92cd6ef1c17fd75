"""The reference of all keys, from conf/ (keys, values, comments) and from the signatures that conf/ names (types)."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.utils import get_object

from docs.generators.markdown import table
from trainkit import Runtime, Trainer
from trainkit.cli.listing import comments
from trainkit.config import OF_RECIPES
from trainkit.training.leakage import look
from trainkit.training.machines import look_at_machines

CONF = Path(__file__).parent.parent.parent / "conf"


def reference() -> str:
    """Markdown: the top level's keys, then a section for each group and a table for each option of it."""
    return "\n\n".join([_top_level(), *(_group(path) for path in sorted(CONF.glob("*/")) if path.name != "experiment")])


def _top_level() -> str:
    text = (CONF / "train.yaml").read_text()
    values = {key: value for key, value in yaml.safe_load(text).items() if key != "defaults"}
    owners = (Runtime, Trainer, look, look_at_machines)
    types = {**OF_RECIPES, **{name: hint for owner in owners for name, hint in hints(owner).items()}}
    described = {name: text for owner in owners for name, text in documented(owner).items()}
    rows = _rows(values, dict(comments(text)), types, "", described=described)
    return "## Top level\n\n" + _table(rows)


def _group(folder: Path) -> str:
    parts = [f"## `{folder.name}`", *(_option(path) for path in sorted(folder.glob("*.yaml")))]
    return "\n\n".join(parts)


def _option(path: Path) -> str:
    text = path.read_text()
    values, said = yaml.safe_load(text) or {}, dict(comments(text))
    values.pop("defaults", None)
    group = path.parent.name
    is_global = "@package _global_" in text
    tree = values if is_global else {group: values}
    rows = [row for key, node in tree.items() for row in _node(node, said, key, key if is_global else "")]
    rows = [row for row in rows if row[2] != f"`{path.stem}`"]  # what the option is called
    heading = f"### `{group}={path.stem}`" + f"\n\n{_introduction(text)}".rstrip()
    target = (tree.get(group) or {}).get("_target_")
    if target:
        heading += f"\n\nArguments of `{target}`."
    return heading + "\n\n" + (_table(rows) if rows else "It has no keys.")


def _introduction(text: str) -> str:
    """The comments at the head of a file."""
    head = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            head.append(line.removeprefix("#").strip())
    return " ".join(head)


def _node(node: Any, said: Mapping[str, str], path: str, prefix: str) -> list[list[str]]:
    """prefix: of the keys of `said`, which are those of the file."""
    if not isinstance(node, Mapping):
        return []
    target = node.get("_target_")
    function = get_object(target) if target else None
    values = {key: value for key, value in node.items() if not (key.startswith("_") and key.endswith("_"))}
    return _rows(values, said, hints(function) if function else {}, path, prefix, documented(function))


def _rows(
    values: Mapping[str, Any],
    said: Mapping[str, str],
    types: Mapping[str, Any],
    path: str,
    prefix: str = "",
    described: Mapping[str, str] | None = None,
) -> list[list[str]]:
    rows = []
    for key, value in values.items():
        full, own = f"{path}.{key}".lstrip("."), f"{prefix}.{key}".lstrip(".")
        if isinstance(value, Mapping) and "_target_" in value:
            rows += _node(value, said, full, own)
            continue
        about = said.get(own) or (described or {}).get(key, "")
        rows.append([f"`{full}`", spelled(types.get(key)), f"`{_shown(value)}`", about])
    return rows


def _table(rows: list[list[str]]) -> str:
    return table(["key", "type", "default", "meaning"], rows)


def _shown(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).split("\n")[0]


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of what a `_target_` takes; none where they cannot be read, as of functions in C."""
    try:
        return get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, TypeError):
        return {}


def spelled(annotation: Any) -> str:
    """A type annotation in words.

    Example:
        >>> spelled(int | None), spelled(list[str]), spelled(tuple[float, float]), spelled(Any)
        ('int or null', 'list of str', '[float, float]', '')
    """
    if annotation is None or annotation is Any:
        return ""
    if annotation is NoneType:
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(str(value) for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(spelled(one) for one in arguments))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"[{', '.join(spelled(one) for one in arguments)}]"
    if origin in (list, tuple, Sequence):
        return f"list of {spelled(arguments[0])}"
    if origin in (dict, Mapping):
        return "mapping"
    if origin is Callable:
        return "callable"
    return str(getattr(annotation, "__name__", annotation))


def documented(function: Callable[..., Any] | None) -> dict[str, str]:
    """What the docstring says of each argument: `name: text`, with more indented lines."""
    doc = inspect.getdoc(function) if function is not None else None
    if not doc:
        return {}
    return {name: text for line in _joined(doc) for name, text in re.findall(r"^(\w+)(?: \([^)]*\))?: (.*)$", line)}


def _joined(doc: str) -> Iterator[str]:
    entry, indent = "", 0
    for line in doc.splitlines():
        own = len(line) - len(line.lstrip())
        if entry and line.strip() and own > indent:
            entry += " " + line.strip()
            continue
        yield entry
        entry, indent = line.strip(), own
    yield entry
