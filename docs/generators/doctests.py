"""An extension of griffe, which reads docstrings for mkdocstrings: every doctest becomes a block of code."""

import re
from typing import Any

import griffe

_BLOCK = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?! *\n| *$).*)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Without it, the text of a doctest outside an `Examples:` section would be read as Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of what was read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    r"""A docstring with each doctest in a block of code.

    Example:
        >>> fenced("Adds.\n\n>>> 1 + 1\n2\n\nMore.")
        'Adds.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nMore.'
    """
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return _BLOCK.sub(lambda match: f"{match['indent']}```pycon\n{match[0]}\n{match['indent']}```", text)
