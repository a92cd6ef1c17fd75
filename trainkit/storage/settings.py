"""StorageSettings: how long a store is waited for, and how much of the disk keeps what was read."""

import math
import os
from dataclasses import dataclass

from trainkit.errors import ConfigError

TIMEOUT, CACHE = "TRAINKIT_STORAGE_TIMEOUT_S", "TRAINKIT_STORAGE_CACHE_GB"


@dataclass(frozen=True)
class StorageSettings:
    """Settings of this machine, which all of its processes share.

    Args:
        timeout_s: seconds after which a read of a store that does not answer is an error.
        cache_gb: what pieces of files take on the local disk at most, in 10^9 bytes; 0: none is kept; None: a tenth of
            what is free there.
    """

    timeout_s: float = 120.0
    cache_gb: float | None = None

    @classmethod
    def from_environment(cls) -> "StorageSettings":
        """Reads TRAINKIT_STORAGE_TIMEOUT_S and TRAINKIT_STORAGE_CACHE_GB.

        Raises:
            ConfigError: for one that is no such number.
        """
        timeout_s, cache_gb = _number(TIMEOUT), _number(CACHE)
        if timeout_s == 0:
            raise ConfigError(f"{TIMEOUT}={os.environ[TIMEOUT]}: must be a number of seconds above 0")
        return cls(cls.timeout_s if timeout_s is None else timeout_s, cache_gb)

    @property
    def attempt_s(self) -> float:
        """Seconds without a byte after which one attempt ends, so that there is time for others."""
        return min(20.0, self.timeout_s / 3)


def _number(name: str) -> float | None:
    text = os.environ.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name}={text}: must be a number, 0 or more")
    return value
