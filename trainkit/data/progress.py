"""Progress bars and lines for work that may take long."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from trainkit.distributed.cluster import Cluster
from trainkit.logger import logger

Item = TypeVar("Item")
PATIENCE_S = 2.0


@contextmanager
def announced(description: str, enabled: bool = True) -> Iterator[None]:
    """Context manager that logs `description` if the block takes longer than two seconds."""
    timer = threading.Timer(PATIENCE_S, lambda: logger(__name__).info(f"{description} ..."))
    timer.daemon = True
    if enabled:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def remark(facts: Mapping[str, int | str], *names: str) -> None:
    """Logs those of `facts` that exist, one per line, on rank 0."""
    for name in names:
        if name in facts and Cluster.from_environment().rank == 0:
            logger(__name__).warning(f"{name}: {facts[name]}")


def track(
    items: Iterable[Item],
    description: str,
    total: int | None = None,
    enabled: bool = True,
    *,
    size: Callable[[Item], int] = lambda _: 1,
) -> Iterator[Item]:
    """Shows the progress of an iteration: after two seconds, a bar on a terminal, or one logged line.

    Args:
        items: the items.
        description: text beside the bar.
        total: the sum of the sizes of the items; None: not known.
        enabled: False: nothing is shown.
        size: of an item; by default each counts as one.

    Yields:
        The items.
    """
    if not enabled:
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task, started, shown = bar.add_task(description, total=total), time.monotonic(), False
    try:
        for item in items:
            yield item
            bar.advance(task, size(item))
            if not shown and time.monotonic() - started > PATIENCE_S:
                shown = True
                bar.start()
                if not console.is_terminal:
                    logger(__name__).info(f"{description} ...")
    finally:
        bar.stop()
