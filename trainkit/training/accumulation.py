"""Accumulation: grad_accumulation_steps=auto, the fewest micro-batches with which a step fits into memory."""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch

from trainkit import checkpoint
from trainkit.memory.memory import in_words
from trainkit.memory.probe import fewest_that_fit
from trainkit.recipe import Recipe, Stage
from trainkit.runtime import Runtime
from trainkit.training.resume import where_to_resume

Steps = int | dict[int, int]  # of all stages, or by stage


def configured(config: Mapping[str, Any]) -> Any:
    """The value of recipe.grad_accumulation_steps; None where the recipe has no such key."""
    recipe = config.get("recipe")
    return recipe.get("grad_accumulation_steps") if isinstance(recipe, Mapping) else None


def checkable(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`config` with a number in place of `auto`."""
    return with_steps(config, 1) if configured(config) == "auto" else config


def with_steps(config: Mapping[str, Any], num: Steps) -> dict[str, Any]:
    """A copy of `config` with recipe.grad_accumulation_steps set to `num`."""
    return {**config, "recipe": {**config["recipe"], "grad_accumulation_steps": num}}


def find(runtime: Runtime, make_recipe: Callable[..., Recipe], resume: str) -> dict[str, Any]:
    """Finds the fewest micro-batches that fit, or takes them from the checkpoint that is resumed. Collective.

    Args:
        runtime: of the run.
        make_recipe: makes the recipe of a runtime and `grad_accumulation_steps`.
        resume: as configured.

    Returns:
        `grad_accumulation_steps` (by stage where the recipe has stages, with the `peak_bytes` of each on CUDA), and
        the world size, strategy and device for which it was found.
    """
    where = {"world_size": runtime.ranks.world_size, "strategy": runtime.strategy.name, "device": runtime.device_name}
    path = where_to_resume(runtime, resume)
    known: dict[str, Any] | None = None
    if path is not None:
        known = checkpoint.read_manifest(runtime.checkpoints.find(path))["values"].get("found")
    if known and {key: known.get(key) for key in where} == where:
        return {**known, "grad_accumulation_steps": _with_integer_keys(known["grad_accumulation_steps"])}
    search = _Search(runtime, make_recipe)
    steps = search.run()
    runtime.reset()
    return {"grad_accumulation_steps": steps, "peak_bytes": search.peak_bytes, **where}


class _Search:
    """The search for a number of micro-batches, of each stage where the recipe has stages."""

    def __init__(self, runtime: Runtime, make_recipe: Callable[..., Recipe]) -> None:
        self.runtime, self.make_recipe = runtime, make_recipe
        self.stages: Mapping[int, Stage] = {}
        self.found: dict[int, int] = {}
        self.share = 1
        self.peak_bytes: dict[int, int] = {}

    def run(self) -> Steps:
        """The fewest that fit. Collective."""
        while True:
            num = fewest_micro_batches(
                self.runtime, self._attempt, largest=lambda: self.share, report=self._report, where=self._where
            )
            if not self.stages:
                return num
            self.found[self._stage] = num
            if len(self.found) == len(self.stages):
                return self.found

    @property
    def _stage(self) -> int:
        return [*self.stages][len(self.found)]

    def _where(self) -> str:
        return f" at {self.stages[self._stage].name}" if self.stages else ""

    def _report(self, text: str) -> None:
        peak = self.peak_bytes.get(self._stage) if self.stages else None
        self.runtime.tracker.message(text + (f", {in_words(peak)} at most" if peak is not None else ""))

    def _attempt(self, num: int) -> None:
        self.runtime.reset()
        # Other stages have one, so that only this one can be refused.
        steps: Steps = {**dict.fromkeys(self.stages, 1), **self.found, self._stage: num} if self.stages else num
        recipe = self.make_recipe(self.runtime, grad_accumulation_steps=steps)
        self.stages = recipe.stages()
        on_cuda = self.runtime.device.type == "cuda"
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self.runtime.device)
        try:
            # From the second step on the optimizer has its state.
            batches = recipe.dearest_batches_of(self._stage) if self.stages else islice(recipe.dearest_batches(), 2)
            for batch in batches:
                self.share = batch.size // self.runtime.ranks.world_size
                recipe.train_step(batch)
            if on_cuda and self.stages:
                self.peak_bytes[self._stage] = torch.cuda.max_memory_allocated(self.runtime.device)
        finally:
            for engine in recipe.engines().values():
                engine.retire()


def _with_integer_keys(steps: int | Mapping[str, int]) -> Steps:
    """Of a manifest, whose keys are strings."""
    return {int(stage): num for stage, num in steps.items()} if isinstance(steps, Mapping) else steps


def fewest_micro_batches(
    runtime: Runtime,
    attempt: Callable[[int], None],
    *,
    largest: Callable[[], int],
    report: Callable[[str], None] | None = None,
    where: Callable[[], str] = lambda: "",
) -> int:
    """The smallest number of micro-batches with which `attempt` fits into memory on every rank. Collective.

    Args:
        runtime: what `attempt` sets its engines up with.
        attempt: called with a number of micro-batches: sets engines up, makes a step or two, and leaves nothing behind.
            One rank may run out of memory in it while others do not.
        largest: the largest number that is tried; called after the first attempt.
        report: called with a line for each attempt; None: the tracker's messages.
        where: returns what these lines and the error add, such as " at 8x8".

    Raises:
        ConfigError: when nothing fits.
    """
    with runtime.reducer.disabled():
        return fewest_that_fit(
            attempt,
            largest=largest,
            group=runtime.ranks.group,
            report=report or runtime.tracker.message,
            where=where,
        )
