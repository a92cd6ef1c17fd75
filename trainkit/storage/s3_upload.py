"""Writes an object of S3 through Arrow's client: in parts where it is large, and whole or not at all."""

import ctypes
import time
from collections.abc import Iterable
from typing import Any

from trainkit.storage.store import PassingError, reason_of

PART_BYTES = 10 << 20
"""What Arrow sends as one part; S3 takes 10,000 of them."""
_MOST_PARTS = 4
"""Parts that are sent at once: what is held in memory."""


def upload(client: Any, path: str, blocks: Iterable[bytes | memoryview]) -> None:
    """Writes blocks, one after the other, as one object, which appears at the end.

    Args:
        client: of Arrow, which makes the request of a part again where it fails.
        path: bucket/key.
        blocks: of PART_BYTES each, the last one shorter.

    Raises:
        OSError: of the blocks, or where nothing was sent yet.
        PassingError: where a part failed after others had come.
    """
    file, sent_s = client.open_output_stream(path, buffer_size=0), 0.0
    try:
        for number, block in enumerate(blocks, start=1):
            file.write(block)
            if number % _MOST_PARTS == 0:
                file.flush()  # waits until they have come
                sent_s = time.monotonic()
        file.close()
    except BaseException as error:
        # Closed, also by the garbage collector, it would become an object of what has come so far.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(file))
        if isinstance(error, OSError) and sent_s:
            raise PassingError(reason_of(error), progress_s=sent_s) from error
        raise
