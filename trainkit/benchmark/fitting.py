"""Fitting: the largest batch of a process whose step fits into memory."""

import gc
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from trainkit.benchmark.batches import dearest
from trainkit.benchmark.configuration import batch_size_of, with_batch_size
from trainkit.config import build_partial, check, resolve
from trainkit.errors import ConfigError
from trainkit.job import new_recipe
from trainkit.memory.meter import Meter
from trainkit.memory.probe import TooLittleMemoryError, fits
from trainkit.runtime import Runtime

MOST = 2**20


def find_batch_size(config: Mapping[str, Any], *, limit: int | None = None) -> dict[str, Any]:
    """Finds the largest batch of a process with which two steps fit into memory. Collective: every rank must call.

    Args:
        config: of a run.
        limit: bytes that a rank may hold; None: what there is.

    Returns:
        `batch_size`, in samples of each process.

    Raises:
        TooLittleMemoryError: where not even one sample fits.
        ConfigError: where the recipe has no batch size.
    """
    start = batch_size_of(config)
    if start is None:
        raise ConfigError("the recipe has no key recipe.batch_size, which could be searched for")
    recipe = new_recipe(with_batch_size(config, start))  # what is wrong shows here
    runtime = recipe.runtime
    for engine in recipe.engines().values():
        engine.retire()
    del recipe

    def attempt(num: int) -> None:
        _try(runtime, with_batch_size(config, num * runtime.ranks.world_size), limit)

    try:
        with runtime.reducer.disabled():
            found = largest_that_fits(
                lambda num: fits(lambda: attempt(num), runtime.ranks.group, refusals=(ConfigError,)), start
            )
        return {"batch_size": found}
    finally:
        runtime.close()


def largest_that_fits(is_fitting: Callable[[int], bool], start: int) -> int:
    """The largest of 1, 2, 4 ... that fits, and quarters of the way to the next one.

    Args:
        is_fitting: called with a number of samples; what is larger than one that does not fit does not fit either.
        start: the first number that is tried.

    Raises:
        TooLittleMemoryError: where 1 does not fit.

    Example:
        >>> largest_that_fits(lambda num: num <= 27, 8)
        24
    """
    num = start
    while not is_fitting(num):
        if num == 1:
            raise TooLittleMemoryError("a step with one sample on each process does not fit into memory")
        num //= 2
    if num >= start:  # otherwise the double is known not to fit
        while 2 * num <= MOST and is_fitting(2 * num):
            num *= 2
    low, high = num, 2 * num
    while high - low > max(1, num // 4):
        middle = (low + high) // 2
        low, high = (middle, high) if is_fitting(middle) else (low, middle)
    return low


def _try(runtime: Runtime, config: Mapping[str, Any], limit: int | None) -> None:
    """Makes the recipe and its dearest steps. Raises what it raises, also for too little memory."""
    runtime.reset()
    is_limited = runtime.device.type == "cuda" or limit is not None
    with Meter(runtime.device, limit) if is_limited else nullcontext():
        recipe = build_partial(check(resolve(config))["recipe"])(runtime)
        try:
            for batch in dearest(recipe) * 2:  # from the second step on the optimizer has its state
                runtime.stream.visit(batch)
                recipe.train_step(batch)
        finally:
            for engine in recipe.engines().values():
                engine.retire()
            gc.collect()
