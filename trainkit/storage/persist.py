"""Requests that are made again, with growing pauses, until they succeed or the time is over."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from trainkit.errors import StorageError
from trainkit.logger import logger
from trainkit.storage.settings import TIMEOUT, StorageSettings
from trainkit.storage.store import PassingError

Answer = TypeVar("Answer")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_MOST_BEGINNINGS = 5
"""Times that a large file is sent from its beginning, where parts of it come each time."""
_PATIENCE_S = 5.0
"""Seconds after which a line says what is waited for."""
_own_random = random.Random()  # seeded by the system: a run's generators must not be drawn from
_last_line_s = [float("-inf")]


def persist(shown: str, settings: StorageSettings, request: Callable[[float], Answer]) -> Answer:
    """Makes a request until it succeeds. The time of one that sends a large file begins anew with each part that came.

    Args:
        shown: the file, as messages name it.
        settings: how long the store is waited for.
        request: called with the seconds that are left.

    Returns:
        What it returned.

    Raises:
        StorageError: where there is no file, or the time is over.
    """
    started, pause_s, beginnings = time.monotonic(), _FIRST_PAUSE_S, 1
    while True:
        left_s = settings.timeout_s - (time.monotonic() - started)
        try:
            return request(max(left_s, 0.05))
        except FileNotFoundError as error:
            raise StorageError(f"{shown} does not exist") from error
        except PassingError as error:
            if error.progress_s > started and beginnings < _MOST_BEGINNINGS:
                started, pause_s, beginnings = error.progress_s, _FIRST_PAUSE_S, beginnings + 1
            spent_s = time.monotonic() - started
            wait_s = max(_own_random.uniform(0.5, 1.0) * pause_s, error.wait_s)
            if spent_s + wait_s >= settings.timeout_s:
                raise StorageError(
                    f"{shown} cannot be reached ({error}), tried for {spent_s:.0f} s: check the network and the store, "
                    f"then type the same command again; {TIMEOUT}=SECONDS waits longer"
                ) from error
            _say(shown, error, spent_s, settings.timeout_s - spent_s)
        time.sleep(wait_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _say(shown: str, error: PassingError, spent_s: float, left_s: float) -> None:
    now = time.monotonic()
    if spent_s >= _PATIENCE_S and now - _last_line_s[0] >= 2 * _LONGEST_PAUSE_S:
        _last_line_s[0] = now
        logger(__name__).warning(f"{shown} does not answer ({error}); it is asked for {left_s:.0f} s more")
