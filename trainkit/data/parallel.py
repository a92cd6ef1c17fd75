"""A parallel map by threads, in order and with bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

IN_FLIGHT = 8  # items per thread, in work or waiting to be yielded: bounds the memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int | None = None
) -> Iterator[Result]:
    """Maps a function over items by threads that run a little ahead.

    Args:
        function: item -> result.
        items: the items.
        num_threads: None: one per core.

    Yields:
        The results, in the order of the items.

    Example:
        >>> list(in_order(abs, [-1, 2, -3], num_threads=2))
        [1, 2, 3]
    """
    num_threads = num_threads or os.cpu_count() or 1
    remaining, pending = iter(items), deque[Future[Result]]()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            pending.extend(pool.submit(function, item) for item in islice(remaining, num_threads * IN_FLIGHT))
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
