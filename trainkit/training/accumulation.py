"""Accumulation: grad_accumulation_steps=auto, the fewest micro-batches with which a step fits into memory."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any

from trainkit import checkpoint
from trainkit.memory.memory import in_words
from trainkit.memory.meter import Meter
from trainkit.memory.probe import AUTO, fewest_that_fit, fits
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
        return {**known, "grad_accumulation_steps": with_integer_keys(known["grad_accumulation_steps"])}
    search = Search(runtime, make_recipe)
    steps = search.run()
    runtime.reset()
    return {"grad_accumulation_steps": steps, "peak_bytes": search.peak_bytes, **where}


class Search:
    """The search for a number of micro-batches, of each stage where the recipe has stages.

    Attributes: `peak_bytes` of the last attempt that fit, by stage (0 of a recipe without stages); on the CPU only
    where there is a limit. `share`, samples of a rank.

    Args:
        runtime: of the run.
        make_recipe: as of `find`; without `is_free` it is given no number.
        least: the fewest micro-batches that are tried, of all stages or by stage.
        limit: bytes that a rank may hold; None: what there is.
        is_free: whether the number may be more than `least`.
        asked: the key and its value, for messages.
    """

    def __init__(
        self,
        runtime: Runtime,
        make_recipe: Callable[..., Recipe],
        *,
        least: Steps = 1,
        limit: int | None = None,
        is_free: bool = True,
        asked: str = AUTO,
    ) -> None:
        self.runtime, self.make_recipe = runtime, make_recipe
        self._least, self.limit, self._is_free, self._asked = least, limit, is_free, asked
        self.stages: Mapping[int, Stage] = {}
        self.found: dict[int, int] = {}
        self.share = 1
        self.peak_bytes: dict[int, int] = {}
        self._last_peak: int | None = None

    def run(self) -> Steps:
        """The fewest that fit. Collective. Raises TooLittleMemoryError where none do."""
        while True:
            num = fewest_micro_batches(
                self.runtime,
                self.attempt,
                largest=lambda: self.largest,
                report=self._report,
                where=self._where,
                least=self.least,
                asked=self._asked,
            )
            if not self.stages:
                return num
            self.found[self._stage] = num
            if len(self.found) == len(self.stages):
                return self.found

    def most_frugal(self, other: "Search") -> int | None:
        """The bytes that it takes with as many micro-batches as there can be; None: more than the limit. Collective.

        Args:
            other: a search with an attempt that has fit, which knows the stages and a rank's share.
        """
        self.stages, self.share, self.found = other.stages, other.share, {}
        needed = 0
        for stage in self.stages.values() or [None]:
            num = self.largest if stage is None or not self._is_free else stage.batch_size // self._world_size
            with self.runtime.reducer.disabled():
                if not fits(partial(self.attempt, num), self.runtime.ranks.group):
                    return None
            needed = max(needed, *self.runtime.ranks.all_gather_object(self._last_peak or 0))
            if stage is not None:
                self.found[self._stage] = num
        return needed

    @property
    def _world_size(self) -> int:
        return self.runtime.ranks.world_size

    @property
    def least(self) -> int:
        """The fewest that are tried, of the stage that comes next."""
        if isinstance(self._least, int):
            return self._least
        return self._least.get(self._stage, 1) if self.stages else min(self._least.values(), default=1)

    @property
    def largest(self) -> int:
        """The most that are tried; of the first attempt on."""
        return max(self.least, self.share) if self._is_free else self.least

    @property
    def _stage(self) -> int:
        return [*self.stages][len(self.found)] if self.stages else 0

    def _where(self) -> str:
        return f" at {self.stages[self._stage].name}" if self.stages else ""

    def _report(self, text: str) -> None:
        peak = "" if self._last_peak is None else f", {in_words(self._last_peak)} at most"
        self.runtime.tracker.message(f"{text}{peak}")

    def attempt(self, num: int) -> None:
        """Makes the recipe and two of its dearest steps. Raises what it raises, also for too little memory."""
        self.runtime.reset()
        self._last_peak = None
        # Other stages have one, so that only this one can be refused.
        steps: Steps = {**dict.fromkeys(self.stages, 1), **self.found, self._stage: num} if self.stages else num
        is_measured = self.runtime.device.type == "cuda" or self.limit is not None
        meter = Meter(self.runtime.device, self.limit) if is_measured else nullcontext()
        with meter:
            recipe = self.make_recipe(self.runtime, **({"grad_accumulation_steps": steps} if self._is_free else {}))
            self.stages = recipe.stages()
            kept = []  # metrics, as a log does
            try:
                # From the second step on the optimizer has its state.
                batches = recipe.dearest_batches_of(self._stage) if self.stages else islice(recipe.dearest_batches(), 2)
                for batch in batches:
                    self.share = batch.size // self.runtime.ranks.world_size
                    kept.append(recipe.train_step(batch))
            finally:
                for engine in recipe.engines().values():
                    engine.retire()
        if isinstance(meter, Meter):
            self.peak_bytes[self._stage] = self._last_peak = meter.peak


def with_integer_keys(steps: int | Mapping[str, int]) -> Steps:
    """Of a manifest, whose keys are strings."""
    return {int(stage): num for stage, num in steps.items()} if isinstance(steps, Mapping) else steps


def fewest_micro_batches(
    runtime: Runtime,
    attempt: Callable[[int], None],
    *,
    largest: Callable[[], int],
    report: Callable[[str], None] | None = None,
    where: Callable[[], str] = lambda: "",
    least: int = 1,
    asked: str = AUTO,
) -> int:
    """The smallest number of micro-batches with which `attempt` fits into memory on every rank. Collective.

    Args:
        runtime: what `attempt` sets its engines up with.
        attempt: called with a number of micro-batches: sets engines up, makes a step or two, and leaves nothing behind.
            One rank may run out of memory in it while others do not.
        largest: the largest number that is tried; called after the first attempt.
        report: called with a line for each attempt; None: the tracker's messages.
        where: returns what these lines and the error add, such as " at 8x8".
        least: the smallest number that is tried.
        asked: the key and its value, for messages.

    Raises:
        TooLittleMemoryError: when nothing fits.
    """
    with runtime.reducer.disabled():
        return fewest_that_fit(
            attempt,
            largest=largest,
            group=runtime.ranks.group,
            report=report or runtime.tracker.message,
            where=where,
            least=least,
            asked=asked,
        )
