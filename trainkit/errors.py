"""Errors that a user can act on: each message names what was given, what is allowed and what to type."""

import difflib
import math
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "DataError",
    "LoaderError",
    "NonFiniteError",
    "PeerError",
    "StorageError",
    "TopologyError",
    "TrainkitError",
    "UntrustedError",
    "UsageError",
    "nearest",
    "require_above_zero",
    "require_at_least",
]


class TrainkitError(Exception):
    """Base class of every error that the user can correct; commands print it as one line and exit with 2."""

    recurs = True
    """Whether the same command would fail again, so that torchrun's --max-restarts should not restart it."""


class ConfigError(TrainkitError, ValueError):
    """A key, a value or a combination of them that is invalid."""


class UntrustedError(ConfigError):
    """A stored configuration names code that is not part of trainkit, which runs only where the user trusts it.

    Args:
        named: the code, as the message names it.
    """

    def __init__(self, named: str) -> None:
        super().__init__(
            f"{named} would run code that is not part of trainkit or its recipes: if you know where the checkpoint "
            f"comes from, type the same command with --trust (in Python: load_recipe(..., trust=True))"
        )


class DataError(TrainkitError, ValueError):
    """Data that is missing, empty or unreadable."""


class CheckpointError(TrainkitError, RuntimeError):
    """A directory that is not a complete checkpoint or belongs to another model; one that could not be written."""

    recurs = False  # a disk may be full for a while


class StorageError(DataError):
    """A file that is not there or cut short, or a store that does not answer."""

    recurs = False  # a store may be gone for a while


class LoaderError(TrainkitError, RuntimeError):
    """A process that fetches data and has ended."""

    recurs = False  # memory may have been short for a while


class UsageError(TrainkitError, RuntimeError):
    """Methods of the library called in an invalid order."""


class PeerError(UsageError):
    """Another rank failed; its own message says why."""

    recurs = False


class ClusterError(TrainkitError, RuntimeError):
    """Process variables that describe no job, a process group that cannot be made, or ranks that are gone."""

    recurs = False


class TopologyError(TrainkitError, ValueError):
    """A description of machines and links that cannot be read, or that contradicts itself."""


class NonFiniteError(TrainkitError, ArithmeticError):
    """A loss or a gradient that is infinite or NaN."""


def require_at_least(least: float, prefix: str = "", **values: float | None) -> None:
    """Checks that numbers are finite and not below a bound.

    Args:
        least: the smallest number that is allowed.
        prefix: of the names in the message, such as `recipe.`.
        values: numbers by name; None is not checked.

    Raises:
        ConfigError: naming the first value that is out of range.

    Example:
        >>> require_at_least(1, "recipe.", batch_size=8, num_steps=0)
        Traceback (most recent call last):
        trainkit.errors.ConfigError: recipe.num_steps=0: must be 1 or more
    """
    for name, value in values.items():
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"{prefix}{name}={value}: must be {least} or more")


def require_above_zero(prefix: str = "", **values: float | None) -> None:
    """Checks that numbers are finite and above 0.

    Args:
        prefix: of the names in the message, such as `recipe.`.
        values: numbers by name; None is not checked.

    Raises:
        ConfigError: naming the first value that is out of range.
    """
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{prefix}{name}={value}: must be a number above 0")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message that suggests a name.

    Args:
        name: what was given.
        allowed: the names that are allowed.

    Returns:
        ` Did you mean 'x'?` where one of `allowed` is close to `name`, else an empty string.

    Example:
        >>> nearest("precison", ["precision", "seed"])
        " Did you mean 'precision'?"
    """
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
