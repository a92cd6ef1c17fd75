"""Work for threads, done in order and with little of it under way at a time."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

IN_FLIGHT = 8  # items a thread, worked on or waiting to be yielded: bounds the memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int | None = None
) -> Iterator[Result]:
    """`function` of each item, in their order, worked out by threads (None: one a core) that run ahead a little."""
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
