"""The output of `--list`: each key with its value, and its comment in conf/."""

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

PLAIN_WIDTH, COLUMN = 120, 36
_LINE = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_][\w]*):(?P<rest>.*)$")
_COMMENT = re.compile(r"(?:^|\s)#\s(.*)$")


def listing(config: Mapping[str, Any], roots: list[Path]) -> str:
    """Formats a configuration as YAML with comments.

    Args:
        config: resolved.
        roots: configuration directories, whose files have comments; the first comment for a key is used.

    Returns:
        Text, as wide as the terminal.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PLAIN_WIDTH
    return "\n".join(_lines(config, _descriptions(config, roots), "", max(width, 60)))


def _lines(node: Mapping[Any, Any], said: Mapping[str, str], path: str, width: int) -> Iterator[str]:
    for key, value in node.items():
        full = f"{path}.{key}" if path else str(key)
        is_open = isinstance(value, Mapping) and value
        text = f"{'  ' * path.count('.') + ('  ' if path else '')}{key}:"
        if not is_open:
            text += (
                " " + yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).split("\n")[0]
            )
        wrapped = textwrap.wrap(said.get(full, ""), width - COLUMN - 2)
        if wrapped and len(text) < COLUMN:
            text = f"{text:<{COLUMN}}# {wrapped.pop(0)}"
        yield text
        yield from (f"{'':<{COLUMN}}# {rest}" for rest in wrapped)
        if isinstance(value, Mapping) and value:
            yield from _lines(value, said, full, width)


def _descriptions(config: Mapping[str, Any], roots: list[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for root in roots:
        files = [root / "train.yaml", *(_chosen(config.get(path.name), path) for path in sorted(root.glob("*/")))]
        for file in files:
            if file is None or not file.is_file():
                continue
            text = file.read_text()
            is_global = file.parent == root or "@package _global_" in text
            for key, comment in comments(text):
                found.setdefault(key if is_global else f"{file.parent.name}.{key}", comment)
    return found


def _chosen(node: Any, group: Path) -> Path | None:
    """The file of `group` that `node` comes from: among those with its `_target_`, the one that shares most values."""
    best, most = None, 0
    for file in sorted(group.glob("*.yaml")):
        whole: dict[str, Any] = yaml.safe_load(file.read_text()) or {}
        own = whole.get(group.name) or whole
        if isinstance(node, Mapping) and own.get("_target_") == node.get("_target_"):
            num = sum(node.get(key) == value for key, value in own.items())
            best, most = (file, num) if num > most else (best, most)
    return best


def comments(text: str) -> Iterator[tuple[str, str]]:
    """(dotted key, comment on its line) of a configuration file."""
    names: list[str] = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        names = [*names[: len(match["indent"]) // 2], match["key"]]
        comment = _COMMENT.search(match["rest"])
        if comment:
            yield ".".join(names), comment[1].strip()
