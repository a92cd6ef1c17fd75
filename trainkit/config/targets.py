"""Targets: the callables that nodes name in `_target_`, and what their signatures say."""

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from hydra.utils import get_object

from trainkit.config.recipes import PACKAGE, require_link
from trainkit.errors import ConfigError


def locate(path: str, target: str) -> Callable[..., Any]:
    """Imports the callable that `path._target_` names.

    Raises:
        ConfigError: it cannot be imported, or is not callable.
    """
    if str(target).startswith(f"{PACKAGE}."):
        require_link()
    try:
        found: Any = get_object(target)
    except Exception as error:
        raise ConfigError(f"{path}._target_={target}: cannot be imported: {first_line(error)}") from error
    if not callable(found):
        raise ConfigError(f"{path}._target_={target}: is a {type(found).__name__}, which cannot be called")
    located: Callable[..., Any] = found
    return located


def hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotation of each argument of `target`; nothing where only a type checker can resolve them."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        return {}  # the names of arguments are still checked


def is_node(value: Any) -> bool:
    """Whether `value` names a callable, which is called with the rest of it."""
    return isinstance(value, dict) and "_target_" in value


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
