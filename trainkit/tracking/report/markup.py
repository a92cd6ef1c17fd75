"""Markup: HTML in which a text is always escaped, and a page that runs and requests nothing but its own."""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"
STYLES = ("uPlot.min.css", "report.css")
LIBRARIES = ("uPlot.iife.min.js", "common.js")
SCRIPTS = (*LIBRARIES, "report.js")
_VOID = {"img", "input", "meta", "br"}


class Markup(str):
    """HTML that is safe to be put into a page as it is; any other string is escaped."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: of the element.
        children: Markup, iterables of children, and anything else as text.
        attributes: by name; a trailing `_` is dropped, other `_` become `-`. False and None leave one out, True writes
            one without a value.

    Example:
        >>> tag("p", "a < b", tag("b", "c"), class_="note", hidden=True)
        '<p class="note" hidden>a &lt; b<b>c</b></p>'
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Markup:
    """Markup of children, one after another; see `tag`."""
    return Markup("".join(map(_markup, children)))


def _markup(child: Any) -> str:
    if isinstance(child, Markup):
        return child
    if isinstance(child, str) or not isinstance(child, Iterable):
        return "" if child is None else escape(str(child))
    return joined(child)


def json_in_script(value: Any) -> str:
    r"""JSON that cannot end the script element that it is in, nor begin a comment there.

    Example:
        >>> json_in_script({"a": "</script><!-- &"})
        '{"a":"\\u003c/script\\u003e\\u003c!-- \\u0026"}'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for letter in "<>&\u2028\u2029":  # within JSON they occur in strings only
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text.encode("utf-8", errors="replace").decode()


def page(
    title: str,
    body: Iterable[Any],
    data: Any,
    *,
    connect: str = "'none'",
    styles: Sequence[str | Path] = STYLES,
    scripts: Sequence[str | Path] = SCRIPTS,
) -> str:
    """A whole page, with its style sheets, its scripts and their data inside.

    Args:
        title: of the page.
        body: children of its main element.
        data: JSON values that the scripts read.
        connect: where scripts may send requests to.
        styles: names of the report's assets, or paths of others.
        scripts: likewise.
    """
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy(connect, tuple(styles), tuple(scripts))),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        [tag("style", Markup(_asset(style))) for style in styles],
    ]
    last = [
        Markup(f'<script type="application/json" id="data">{json_in_script(data)}</script>'),
        [tag("script", Markup(_asset(script))) for script in scripts],
    ]
    html = tag("html", tag("head", head), tag("body", tag("main", body), last), lang="en")
    return f"<!doctype html>{html}\n".encode("utf-8", errors="replace").decode()


@cache
def policy(
    connect: str = "'none'",
    styles: tuple[str | Path, ...] = STYLES,
    scripts: tuple[str | Path, ...] = SCRIPTS,
) -> str:
    """The Content-Security-Policy of a page: only our own scripts and styles, by their hashes, and no requests."""
    style, script = (" ".join(f"'sha256-{_digest(_asset(name))}'" for name in names) for names in (styles, scripts))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src {connect}; "
        f"base-uri 'none'; form-action {connect}"
    )


@cache
def _asset(name: str | Path) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
