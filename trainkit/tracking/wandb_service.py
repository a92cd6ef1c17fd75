"""The service process of Weights & Biases: started so that a signal to a whole job leaves it alone where it can."""

import atexit
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

_KEPT_FROM_IT = {signal.SIGUSR1}  # it handles SIGTERM, SIGINT and SIGHUP, even where they are blocked, and ends


@contextmanager
def shielded() -> Iterator[None]:
    """A context in which a process that is started keeps SIGUSR1 blocked.

    Schedulers signal every process of a job, and the service has no handler for SIGUSR1, which would kill it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT_FROM_IT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@cache
def errors() -> tuple[type[Exception], ...]:
    """What wandb raises where its service has ended, whichever call notices it."""
    from wandb.sdk.mailbox import HandleAbandonedError
    from wandb.sdk.mailbox.mailbox import MailboxClosedError

    return OSError, HandleAbandonedError, MailboxClosedError


def end() -> None:
    """Ends the service, and forgets one that has ended."""
    import wandb

    with suppress(*errors(), SystemExit):  # of a service that is gone, or has ended with a code that teardown repeats
        wandb.teardown()


def end_at_exit() -> None:
    """Ends the service when this process ends: wandb's own function prints a traceback where a signal has ended it.

    To be called after each start of the service, because functions that were registered last run first.
    """
    atexit.unregister(end)
    atexit.register(end)
