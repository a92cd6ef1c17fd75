"""Outgrown: a step that needs more memory than there is, made again in more micro-batches."""

from collections.abc import Mapping

from torch import Tensor

from trainkit.data.batch import Batch
from trainkit.memory.probe import fits
from trainkit.recipe import Recipe
from trainkit.tracking.means import Last

Metrics = Mapping[str, Tensor | float | Last]


def train_step(recipe: Recipe, batch: Batch) -> Metrics:
    """Makes a step of the recipe. Collective: every rank must call.

    Where the recipe says that it may outgrow memory, and it does on some rank, all of them return to the state before
    the step, and make it in more micro-batches, which changes no weight beyond the order of sums. A reduction along a
    plan of trainkit's own (`comm`) cannot be left half-way: there the error is raised.

    Args:
        recipe: of the run.
        batch: this rank's share of the global batch.

    Returns:
        What to log of the step.

    Raises:
        ConfigError: where more micro-batches are not possible.
    """
    if not recipe.may_outgrow_memory(batch):
        return recipe.train_step(batch)
    runtime = recipe.runtime
    runtime.guard.read()  # of the steps before; those of a failed attempt are forgotten
    before = {name: engine.state.snapshot() for name, engine in recipe.engines().items()}
    made: list[Metrics] = []
    while not fits(lambda: made.append(recipe.train_step(batch)), runtime.ranks.group):
        made.clear()
        runtime.guard.forget()
        recipe.split_further()
        for name, engine in recipe.engines().items():
            engine.state.restore(before[name])
        runtime.stream.visit(batch)
    return made[0]
