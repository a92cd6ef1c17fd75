"""Overrides: `key=value` as a user types it, read by Hydra's grammar, or as it stands where that cannot read it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from trainkit.errors import ConfigError


@dataclass(frozen=True)
class Override:
    """One `key=value`.

    Args:
        key: without `+` and `~`.
        value: as the grammar reads it.
        raw: what was typed after the `=`.
        text: the override that Hydra gets: the value in quotes where the grammar could not read it.
    """

    key: str
    value: Any
    raw: str
    text: str

    @property
    def is_a_guess(self) -> bool:
        """Whether the value was read as a number, a list or a mapping, and could be meant as text."""
        return self.value is not None and not isinstance(self.value, str)


def read(overrides: Sequence[str]) -> list[Override]:
    """Reads `overrides` by Hydra's grammar; a value that it cannot read, or takes for a sweep, is text as it stands.

    Raises:
        ConfigError: an override is not of the form key=value.
    """
    parser = OverridesParser.create()
    return [_read(parser, override) for override in overrides]


def quoted(value: str) -> str:
    """Puts `value` in quotes of Hydra's grammar, which reads it back unchanged."""
    # Backslashes count only before a quote or an interpolation, where each is written twice.
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


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
