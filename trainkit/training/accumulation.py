"""Accumulation: grad_accumulation_steps=auto, the fewest micro-batches with which a step fits into memory."""

from collections.abc import Callable, Mapping
from typing import Any

from trainkit import checkpoint
from trainkit.memory.probe import fewest_that_fit
from trainkit.recipe import Recipe
from trainkit.runtime import Runtime
from trainkit.training.resume import where_to_resume


def configured(config: Mapping[str, Any]) -> Any:
    """The value of recipe.grad_accumulation_steps; None where the recipe has no such key."""
    recipe = config.get("recipe")
    return recipe.get("grad_accumulation_steps") if isinstance(recipe, Mapping) else None


def with_steps(config: Mapping[str, Any], num: int) -> dict[str, Any]:
    """A copy of `config` with recipe.grad_accumulation_steps set to `num`."""
    return {**config, "recipe": {**config["recipe"], "grad_accumulation_steps": num}}


def find(runtime: Runtime, make_recipe: Callable[..., Recipe], resume: str) -> dict[str, Any]:
    """Finds the fewest micro-batches that fit, or takes them from the checkpoint that is resumed. Collective.

    Args:
        runtime: of the run.
        make_recipe: makes the recipe of a runtime and `grad_accumulation_steps`.
        resume: as configured.

    Returns:
        `grad_accumulation_steps`, and the world size, strategy and device for which it was found.
    """
    where = {"world_size": runtime.ranks.world_size, "strategy": runtime.strategy.name, "device": runtime.device_name}
    path = where_to_resume(runtime, resume)
    known: dict[str, Any] | None = None
    if path is not None:
        known = checkpoint.read_manifest(runtime.checkpoints.find(path))["values"].get("found")
    if known and {key: known.get(key) for key in where} == where:
        return known
    share = 1

    def attempt(num: int) -> None:
        nonlocal share
        runtime.reset()
        recipe = make_recipe(runtime, grad_accumulation_steps=num)
        try:
            batches = recipe.dearest_batches()
            for _ in range(2):  # from the second step on the optimizer has its state
                batch = next(batches)
                share = batch.size // runtime.ranks.world_size
                recipe.train_step(batch)
        finally:
            for engine in recipe.engines().values():
                engine.retire()

    num = fewest_micro_batches(runtime, attempt, largest=lambda: share)
    runtime.reset()
    return {"grad_accumulation_steps": num, **where}


def fewest_micro_batches(runtime: Runtime, attempt: Callable[[int], None], *, largest: Callable[[], int]) -> int:
    """The smallest number of micro-batches with which `attempt` fits into memory on every rank. Collective.

    Args:
        runtime: what `attempt` sets its engines up with.
        attempt: called with a number of micro-batches: sets engines up, makes a step or two, and leaves nothing behind.
            One rank may run out of memory in it while others do not.
        largest: the largest number that is tried; called after the first attempt.

    Raises:
        ConfigError: when nothing fits.
    """
    with runtime.reducer.disabled():
        return fewest_that_fit(attempt, largest=largest, group=runtime.ranks.group, report=runtime.tracker.message)
