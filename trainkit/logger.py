"""Loggers below "trainkit", whose lines appear on stderr where the application has not configured logging."""

import logging
import sys
from contextlib import suppress

_ROOT = "trainkit"
_OWN_LEVEL = logging.INFO - 1  # shows INFO; another number than an application would set, which therefore stays


class _Stderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # stderr may be a file on the full disk that the line is about
            print(self.format(record), file=sys.stderr, flush=True)  # the sys.stderr of now

    def format(self, record: logging.LogRecord) -> str:
        kind = "error: " if record.levelno >= logging.ERROR else ""
        return f"{_ROOT}: {kind}{super().format(record)}"


_STDERR = _Stderr()


def logger(name: str) -> logging.Logger:
    """Returns the logger of a module; call it for each line, because an application may configure logging at any time.

    Where a handler of the application receives its records, the application's levels and handlers hold and nothing
    else is printed. Elsewhere records of level INFO and above are printed on stderr as `trainkit: message`.

    Args:
        name: `__name__` of the module, below "trainkit".
    """
    root, own = logging.getLogger(_ROOT), logging.getLogger(name)
    if _is_configured(own):
        root.removeHandler(_STDERR)
        if root.level == _OWN_LEVEL:
            root.setLevel(logging.NOTSET)
    else:
        root.addHandler(_STDERR)
        if root.level == logging.NOTSET:
            root.setLevel(_OWN_LEVEL)
    return own


def _is_configured(own: logging.Logger) -> bool:
    """Whether records of a logger reach a handler other than ours."""
    at: logging.Logger | None = own
    while at is not None:
        if any(handler is not _STDERR for handler in at.handlers):
            return True
        at = at.parent if at.propagate else None
    return False
