"""Errors that a user can act on: each message names what was given, what is allowed and what to type."""

import difflib
import math
from collections.abc import Iterable


class TrainkitError(Exception):
    """Base of every error that is the user's to mend; launchers print it as one line and exit with 2."""

    recurs = True
    """Whether the same command would meet it again, so that torchrun's --max-restarts had better not try."""


class ConfigError(TrainkitError, ValueError):
    """A key, a value or a combination of them that cannot be."""


class UntrustedError(ConfigError):
    """What a stored configuration names is not ours to run without being told so."""

    def __init__(self, named: str) -> None:
        super().__init__(
            f"{named} would run code that is not trainkit's or its recipes': where you know where the checkpoint comes "
            f"from, type the same command with --trust (in Python: load_recipe(..., trust=True))"
        )


class DataError(TrainkitError, ValueError):
    """Data that is missing, empty or unreadable."""


class CheckpointError(TrainkitError, RuntimeError):
    """A directory that is not a whole checkpoint, or one of another model; one that could not be written."""

    recurs = False  # a disk may be full for a while


class UsageError(TrainkitError, RuntimeError):
    """The library's methods called in an order that has no meaning."""


class PeerError(UsageError):
    """Another rank failed, and says itself why."""

    recurs = False


class ClusterError(TrainkitError, RuntimeError):
    """Process variables that do not describe a job, a process group that cannot be made, or ranks that are gone."""

    recurs = False


class TopologyError(TrainkitError, ValueError):
    """A description of machines and links that cannot be read, or that contradicts itself."""


class NonFiniteError(TrainkitError, ArithmeticError):
    """A loss or a gradient that is no longer a number."""


def require_at_least(least: float, prefix: str = "", **values: float | None) -> None:
    """Raises ConfigError naming the first of `values`, as `prefix` and its name, that is below `least`; None is not.

    >>> require_at_least(1, "recipe.", batch_size=8, num_steps=0)
    Traceback (most recent call last):
    trainkit.errors.ConfigError: recipe.num_steps=0: allowed is 1 or more
    """
    for name, value in values.items():
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"{prefix}{name}={value}: allowed is {least} or more")


def require_above_zero(prefix: str = "", **values: float | None) -> None:
    """Raises ConfigError naming the first of `values` that is not above 0 and finite; None is left alone."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{prefix}{name}={value}: allowed is a number above 0")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """` Did you mean 'x'?` when one of `allowed` is close to `name`, else an empty string.

    >>> nearest("precison", ["precision", "seed"])
    " Did you mean 'precision'?"
    """
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
