"""A progress bar for work that may be over before anyone wants to see one."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from trainkit.distributed.cluster import Cluster

Item = TypeVar("Item")
PATIENCE_S = 2.0


@contextmanager
def announced(description: str, enabled: bool = True) -> Iterator[None]:
    """Says on stderr what is under way where it has not ended after two seconds; for work that has no parts."""
    timer = threading.Timer(PATIENCE_S, lambda: print(f"{description} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    if enabled:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def remark(facts: Mapping[str, int | str], *names: str) -> None:
    """Those of `facts` that are there, one a line on rank 0's stderr."""
    for name in names:
        if name in facts and Cluster.from_environment().rank == 0:
            print(f"trainkit: {name}: {facts[name]}", file=sys.stderr, flush=True)


def track(items: Iterable[Item], description: str, total: int | None = None, enabled: bool = True) -> Iterator[Item]:
    """Yields `items`; after two seconds a bar appears on stderr, or one plain line where that is not a terminal."""
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
            bar.advance(task)
            if not shown and time.monotonic() - started > PATIENCE_S:
                shown = True
                bar.start()
                if not console.is_terminal:
                    console.print(f"{description} ...", highlight=False)
    finally:
        bar.stop()
