"""Functions of the user that say which examples are kept."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from trainkit.errors import ConfigError, DataError, nearest


class Judge:
    """A function of a text or an image, by name.

    Args:
        name: `module:name`, which is imported.
        wants_score: whether it must return a score, or whether an example is kept.

    Raises:
        ConfigError: where there is no such function.
    """

    def __init__(self, name: str, wants_score: bool) -> None:
        self._name, self._wants_score = name, wants_score
        self._function = _imported(name)

    def __call__(self, example: Any, where: str) -> float:
        """Returns the score; or 1.0 for an example that is kept and 0.0 for one that is not.

        Args:
            example: text or image.
            where: its name.

        Raises:
            DataError: where the function fails, or returns something else.
        """
        try:
            found = self._function(example)
        except Exception as error:  # a user's function may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(f"--function={self._name} failed on {where}: {reason}") from error
        is_bool = isinstance(found, bool | np.bool_)
        if is_bool and self._wants_score:
            raise ConfigError(f"--function={self._name} returns True or False: leave --score-between out")
        if not is_bool and not self._wants_score and isinstance(found, int | float | np.number):
            raise ConfigError(f"--function={self._name} returns a score: set --score-between LOW HIGH, such as 0.1 1")
        if is_bool or (isinstance(found, int | float | np.number) and math.isfinite(found)):
            return float(found)
        raise DataError(f"--function={self._name} returned {found!r} for {where}: must be a bool or a finite number")


def _imported(name: str) -> Callable[[Any], Any]:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"--function={name}: cannot import {module_name!r} ({error})") from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = nearest(part, [one for one in dir(found) if not one.startswith("_")])
            raise ConfigError(f"--function={name}: there is no {part!r} in it.{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"--function={name}: must be a function, and is {type(found).__name__}")
    function: Callable[[Any], Any] = found
    return function
