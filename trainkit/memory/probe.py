"""Probe: finds the fewest micro-batches with which a step fits into memory on every rank."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from trainkit.errors import ConfigError, PeerError

_FINE, _DOES_NOT_FIT, _FAILED = range(3)
AUTO = "grad_accumulation_steps=auto"


class TooLittleMemoryError(ConfigError):
    """Nothing that was tried fits into memory."""


def fewest_that_fit(
    attempt: Callable[[int], None],
    *,
    largest: Callable[[], int],
    group: dist.ProcessGroup | None,
    report: Callable[[str], None] = lambda text: None,
    where: Callable[[], str] = lambda: "",
    least: int = 1,
    asked: str = AUTO,
) -> int:
    """The smallest n of `least` .. `largest()` for which `attempt(n)` does not run out of memory on any rank.

    Doubles n, then bisects. Collective: every rank must call.

    Args:
        attempt: called with n; must leave nothing behind when it returns or raises. An n that it refuses with a
            ConfigError counts as too few.
        largest: the largest n.
        group: a gloo group of all ranks; None: one process.
        report: called with a line for each attempt.
        where: returns what these lines and the error add, such as " at 8x8".
        least: the smallest n that is tried.
        asked: the key and its value, for these lines.

    Raises:
        TooLittleMemoryError: where none fits.
        PeerError: where another rank failed for another reason.
    """

    def is_enough(num: int) -> bool:
        found = fits(partial(attempt, num), group, refusals=(ConfigError,) if num > least else ())
        outcome = "fit" if found else "do not fit"
        report(f"{asked}: {num} micro-batches a rank {outcome} into memory{where()}")
        return found

    enough, too_few = least, least - 1
    while not is_enough(enough):
        too_few = enough
        if too_few >= largest():
            raise TooLittleMemoryError(
                f"{asked}: a rank's share does not fit into memory in {too_few} micro-batches"
                f"{where()}, and there can be no more: use strategy=fsdp or zero3, activation_checkpointing=[...], or "
                f"a smaller model"
            )
        enough = min(2 * enough, largest())
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if is_enough(middle):
            enough = middle
        else:
            too_few = middle
    return enough


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; on the CPU it has no class of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def fits(
    attempt: Callable[[], object],
    group: dist.ProcessGroup | None,
    *,
    refusals: tuple[type[Exception], ...] = (),
) -> bool:
    """Whether `attempt()` runs out of memory on no rank. Collective: every rank must call.

    Args:
        attempt: may run out of memory on one rank while others wait for it in a collective.
        group: a gloo group of all ranks; None: one process.
        refusals: errors that count as running out of memory.

    Raises:
        PeerError: where another rank failed for another reason.
    """
    statuses = _StatusExchange(group)
    outcome = _FINE
    try:
        with statuses:
            attempt()
        statuses.exchange(_FINE)
    except BaseException as error:
        if statuses.of_a_peer == _FINE:
            outcome = _DOES_NOT_FIT if isinstance(error, refusals) or is_out_of_memory(error) else _FAILED
            statuses.exchange(outcome)
            if outcome == _FAILED:
                raise
    if max(outcome, statuses.of_a_peer) == _FINE:
        return True
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if statuses.of_a_peer == _FAILED:
        raise PeerError("another rank failed while this one tried whether a step fits into memory")
    return False


class _PeerError(Exception):
    """Another rank has failed and will not take part in the next collective."""


class _StatusExchange(TorchDispatchMode):
    """Makes the ranks exchange their status before each collective.

    A rank that has run out of memory exchanges its own, so that the others do not wait for it.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.group = group
        self.of_a_peer = _FINE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.exchange(_FINE)
        return func(*args, **(kwargs or {}))

    def exchange(self, mine: int) -> None:
        """Exchanges the status of all ranks. Raises _PeerError where this rank's is good and another's is not."""
        if self.group is None or self.of_a_peer != _FINE:
            return
        worst = torch.tensor(mine)
        dist.all_reduce(worst, dist.ReduceOp.MAX, group=self.group)
        if mine == _FINE and int(worst) != _FINE:
            self.of_a_peer = int(worst)
            raise _PeerError
