"""The log of torch's elastic agent, which would say in pages what commands of trainkit say in a line."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

_AGENT = "torch.distributed.elastic"


@contextmanager
def silenced() -> Iterator[None]:
    """A context without the agent's log, unless LOGLEVEL asks for it, as with torchrun."""
    own = logging.getLogger(_AGENT)
    if "LOGLEVEL" in os.environ:
        yield
        return
    propagated, silence = own.propagate, logging.NullHandler()
    own.propagate = False
    own.addHandler(silence)
    try:
        yield
    finally:
        own.propagate = propagated
        own.removeHandler(silence)
