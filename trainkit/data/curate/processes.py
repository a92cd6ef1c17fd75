"""A map by processes, in order and with bounded memory."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import TypeVar

from trainkit.errors import DataError

_IN_FLIGHT = 3  # batches per process: bounds the memory
_FEW = 4  # batches that this process computes faster than others start

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int | None = None
) -> Iterator[Result]:
    """Maps a function over batches by processes that run a little ahead.

    Args:
        function: batch -> result, which a process can import.
        items: the batches; a few of them are computed in this process.
        num_workers: processes; None: one per core; 0: this process computes all.

    Yields:
        The results, in the order of the items.

    Raises:
        DataError: where a process was killed.
    """
    num_workers = len(os.sched_getaffinity(0)) if num_workers is None else num_workers
    remaining = iter(items)
    few = list(islice(remaining, _FEW))
    if num_workers < 2 or len(few) < _FEW:
        yield from map(function, chain(few, remaining))
        return
    pending = deque[Future[Result]]()
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent)
    try:
        ahead = chain(few, remaining)
        pending.extend(pool.submit(function, item) for item in islice(ahead, num_workers * _IN_FLIGHT))
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(ahead, 1))
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, perhaps for want of memory; type the same with --num-workers 1"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this process as soon as the one that it works for has ended, however that was."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
