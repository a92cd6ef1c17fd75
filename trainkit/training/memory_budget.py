"""MemoryBudget: memory.budget=4GB, the settings with which a step fits into that much memory on every rank."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trainkit import checkpoint
from trainkit.config import build, compose
from trainkit.data import Batch
from trainkit.errors import ConfigError
from trainkit.memory.memory import in_words
from trainkit.memory.meter import Meter, available, limit_gpu
from trainkit.memory.probe import TooLittleMemoryError, fits
from trainkit.memory.size import num_bytes
from trainkit.recipe import Recipe
from trainkit.runtime import Runtime
from trainkit.training import accumulation
from trainkit.training.accumulation import Search, Steps, with_integer_keys
from trainkit.training.resume import where_to_resume

_SLACK = 1.02  # when Python frees what refers to itself is not the same each time
_NUM_MEASURED = 2  # steps; from the second one on, the optimizer has its state
_LEAST = 2 * 4096  # bytes, so that no budget is meant as a number of gigabytes


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """What a rank may hold in memory. Before training, settings are chosen with which it holds no more.

    They are tried in this order, each with as few micro-batches as fit, and each together with those before it: as
    configured; activation checkpointing of the recipe's blocks; bf16, which changes results; sharding, on more than one
    rank; offload to host memory, on GPUs. The global batch and the learning rate stay as they are.

    Args:
        budget: bytes, or text such as `4GB`, `800MB` or `4GiB`; None: nothing is chosen. On a GPU, of what PyTorch
            allocates, which may be no more from then on; on the CPU, of tensors that are alive in a step.
        lower_precision: whether bf16 may be chosen.

    Raises:
        ConfigError: for what is no such number.
    """

    budget: int | str | None = None
    lower_precision: bool = True

    def __post_init__(self) -> None:
        if self.budget is not None and self.num_bytes < _LEAST:
            raise ConfigError(
                f"memory.budget={self.budget}: {self.num_bytes} bytes hold no model; such as 4GB or 800MB"
            )

    @property
    def num_bytes(self) -> int:
        """The budget in bytes; of one that is not None."""
        return num_bytes(str(self.budget), "memory.budget")


@dataclass(frozen=True)
class Settings:
    """Settings with which a step is tried.

    Args:
        typed: as they are typed, such as `precision=bf16`; empty: as configured.
        keys: the values of keys of the configuration.
        note: what the user must know of it.
    """

    typed: str = ""
    keys: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def and_also(self, typed: str, note: str = "", **keys: Any) -> "Settings":
        """These and others."""
        return Settings(f"{self.typed} {typed}".strip(), {**self.keys, **keys}, note or self.note)

    def apply(self, runtime: Runtime, config: Mapping[str, Any]) -> None:
        """Makes a runtime use them. Collective. Raises ConfigError where it cannot."""
        now = {**config, **self.keys}
        runtime.adapt(
            strategy=build(now["strategy"]),
            precision=build(now["precision"]),
            activation_checkpointing=now["activation_checkpointing"],
        )


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Args:
        settings: beside the number of micro-batches.
        steps: micro-batches; None: the recipe has no such key.
        found: what the run stores.
    """

    settings: Settings
    steps: Steps | None
    found: Mapping[str, Any]

    def of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a configuration with the choice in it."""
        changed = {**config, **self.settings.keys}
        return changed if self.steps is None else accumulation.with_steps(changed, self.steps)


def find(
    runtime: Runtime, make_recipe: Callable[..., Recipe], config: Mapping[str, Any], budget: MemoryBudget
) -> Choice:
    """Chooses settings that fit, or takes them from the checkpoint that is resumed, and uses them. Collective.

    Args:
        runtime: of the run.
        make_recipe: makes the recipe of a runtime and, where the recipe has the key, `grad_accumulation_steps`.
        config: as resolved, with `grad_accumulation_steps` as configured.
        budget: that is not None.

    Raises:
        ConfigError: where nothing fits, with the smallest budget that would.
    """
    limit = budget.num_bytes
    where = {
        "budget": limit,
        "world_size": runtime.ranks.world_size,
        "strategy": runtime.strategy.name,
        "precision": runtime.precision.name,
        "device": runtime.device_name,
    }
    configured = accumulation.configured(config)
    trial = _Trial(runtime, make_recipe, limit, 1 if configured == "auto" else configured)
    known = _known(runtime, config["resume"], where)
    if known is not None:
        settings = Settings(known["typed"], known["keys"])
        steps = (
            None if known["grad_accumulation_steps"] is None else with_integer_keys(known["grad_accumulation_steps"])
        )
        settings.apply(runtime, config)
        trial.say(f"{_named(settings, steps)}, as the run that is resumed has found")
    else:
        settings, steps = _chosen(trial, config)
        known = {"typed": settings.typed, "keys": dict(settings.keys), "grad_accumulation_steps": steps}
        known = {**known, "peak_bytes": trial.peak, **where}
        note = f"; {settings.note}" if settings.note else ""
        trial.say(f"chosen: {_named(settings, steps)}, {in_words(trial.peak)} at most when it was tried{note}")
    runtime.reset()
    if runtime.device.type == "cuda":
        limit_gpu(runtime.device, limit)
    return Choice(settings, steps, {"memory": known})


class _Trial:
    """Tries settings within a budget."""

    def __init__(self, runtime: Runtime, make_recipe: Callable[..., Recipe], limit: int, least: Steps | None) -> None:
        self.runtime, self.limit, self.peak = runtime, limit, 0
        self._searched = partial(
            Search, runtime, make_recipe, least=1 if least is None else least, is_free=least is not None
        )
        self.has_steps = least is not None

    def say(self, text: str) -> None:
        """Reports a line."""
        self.runtime.tracker.message(f"memory.budget={in_words(self.limit)}: {text}")

    def steps(self, settings: Settings) -> Steps | None:
        """The fewest micro-batches with which settings fit, of all stages or by stage. Collective.

        Raises:
            TooLittleMemoryError: where none do.
        """
        search = self._searched(limit=self.limit, asked=f"memory.budget={in_words(self.limit)}: {_named(settings)}")
        steps = search.run()
        self.peak = max(self.runtime.ranks.all_gather_object(max(search.peak_bytes.values())))
        return steps if self.has_steps else None

    def learnt(self) -> Search | None:
        """A search that has made a step within what memory there is, and knows the recipe; None: it could not."""
        search = self._searched(limit=available(self.runtime.device))
        with self.runtime.reducer.disabled():
            return search if fits(partial(search.attempt, search.least), self.runtime.ranks.group) else None

    def least_bytes(self, learnt: Search) -> int | None:
        """What the settings in use take with as many micro-batches as there can be; None: more than there is."""
        return self._searched(limit=available(self.runtime.device)).most_frugal(learnt)


def _chosen(trial: _Trial, config: Mapping[str, Any]) -> tuple[Settings, Steps | None]:
    for settings in _ladder(trial.runtime, config):
        try:
            settings.apply(trial.runtime, config)
            return settings, trial.steps(settings)
        except TooLittleMemoryError:
            continue
        except ConfigError as error:
            if not settings.typed:
                raise
            trial.say(f"{settings.typed} is left out: {error}")
    raise _nothing_fits(trial, config)


def _nothing_fits(trial: _Trial, config: Mapping[str, Any]) -> ConfigError:
    needed: dict[str, int] = {}
    Settings().apply(trial.runtime, config)
    learnt = trial.learnt()
    for settings in _ladder(trial.runtime, config):
        if learnt is None:
            break
        try:
            settings.apply(trial.runtime, config)
            least = trial.least_bytes(learnt)
        except ConfigError:
            continue  # as before
        if least is not None:
            needed[_named(settings)] = least
    said = f"memory.budget={in_words(trial.limit)}: no settings that were tried fit into it"
    if not needed:
        return TooLittleMemoryError(f"{said}, nor into what memory there is: take a smaller model or shorter samples")
    name = min(needed, key=lambda name: needed[name])
    smallest = math.ceil(_SLACK * needed[name])
    return TooLittleMemoryError(
        f"{said}; the smallest budget that would do is about {in_words(smallest)}, {name}: set "
        f"memory.budget={smallest}, or take a smaller model or shorter samples"
    )


def _ladder(runtime: Runtime, config: Mapping[str, Any]) -> Iterator[Settings]:
    """Settings from those that cost the user least on; a caller tries each before it asks for the next one."""
    now = Settings()
    yield now
    blocks = sorted({*config["activation_checkpointing"], *(block.__name__ for block in runtime.block_classes)})
    if blocks and blocks != sorted(config["activation_checkpointing"]):
        typed = f"activation_checkpointing=[{','.join(blocks)}]"
        now = now.and_also(typed, activation_checkpointing=blocks)
        yield now
    if config["memory"]["lower_precision"] and config["precision"]["name"] in ("fp32", "tf32"):
        note = "precision=bf16 changes results: products are of numbers of 8 bits beside their exponent"
        now = now.and_also("precision=bf16", note, precision={**config["precision"], "name": "bf16"})
        yield now
    if runtime.ranks.world_size > 1 and config["strategy"]["_target_"] == _node("ddp")["_target_"]:
        now = now.and_also("strategy=fsdp", strategy=_node("fsdp"))
        yield now
    if runtime.device.type == "cuda" and now.keys.get("strategy", config["strategy"]) in (_node("ddp"), _node("fsdp")):
        offloaded = {**_node("fsdp"), "cpu_offload": True}
        typed = "strategy=fsdp strategy.cpu_offload=true"
        yield Settings(now.typed.replace(" strategy=fsdp", ""), now.keys, now.note).and_also(typed, strategy=offloaded)


def _node(strategy: str) -> dict[str, Any]:
    node: dict[str, Any] = compose([f"strategy={strategy}"])["strategy"]
    return node


def _named(settings: Settings, steps: Steps | None = None) -> str:
    number = f"recipe.grad_accumulation_steps={steps}" if steps is not None else ""
    return " ".join(filter(None, [settings.typed or ("" if number else "as configured"), number]))


def measured(runtime: Runtime, make_recipe: Callable[..., Recipe], choice: Choice) -> Recipe:
    """Makes the recipe, and reports after two steps how much memory they have taken. Collective.

    Args:
        runtime: of the run.
        make_recipe: of the runtime.
        choice: that was made.
    """
    meter = Meter(runtime.device)
    with meter:
        recipe = make_recipe(runtime)
    step, num_done = recipe.train_step, 0

    def train_step(batch: Batch) -> Any:
        nonlocal num_done
        with meter:
            metrics = step(batch)
        num_done += 1
        if num_done == _NUM_MEASURED:
            del recipe.train_step  # the method itself is next
            peak, budget = max(runtime.ranks.all_gather_object(meter.peak)), choice.found["memory"]["budget"]
            text = f"measured {in_words(peak)} at most in the first {_NUM_MEASURED} steps"
            runtime.tracker.message(f"memory.budget={in_words(budget)}: {text}")
        return metrics

    recipe.train_step = train_step  # type: ignore[method-assign]
    return recipe


def _known(runtime: Runtime, resume: str, where: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the run that is resumed has found for the same budget, processes and settings. Collective."""
    path = where_to_resume(runtime, resume)
    if path is None:
        return None
    found = checkpoint.read_manifest(runtime.checkpoints.find(path))["values"].get("found") or {}
    known: dict[str, Any] | None = found.get("memory")
    return known if known is not None and {key: known.get(key) for key in where} == where else None
