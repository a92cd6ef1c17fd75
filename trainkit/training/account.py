"""Account: what a run logs about itself at its start and at its end."""

import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from trainkit.data.batch import Batch
from trainkit.data.datasets import Datasets
from trainkit.engine.engine import Engine
from trainkit.errors import UntrustedError
from trainkit.evaluation import Assessment
from trainkit.memory.memory import in_words
from trainkit.recipe import Recipe, Stage
from trainkit.runtime import Runtime
from trainkit.tracking.command import as_typed
from trainkit.tracking.console import number
from trainkit.training.trust import require_ours
from trainkit.version import __version__


def of_start(
    runtime: Runtime, recipe: Recipe, first: Batch | None, found: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Yields lines on the engines, the data, and how the batch is split.

    Args:
        runtime: of the run.
        recipe: of the run.
        first: the first global batch; None: nothing is left to train.
        found: what was determined when the run started.
    """
    for name, engine in recipe.engines().items():
        yield from _of_engine(runtime, name, engine, first)
    yield from _of_stages(runtime, recipe.stages(), (found or {}).get("peak_bytes", {}))
    yield from _of_data(recipe)
    yield from _of_audit(found)


def _of_audit(found: Mapping[str, Any] | None) -> Iterator[str]:
    """What the audit of the data has found, beside the metrics that it may make too good."""
    if line := (found or {}).get("audit", {}).get("line"):
        yield f"audit: {line}"


def log_memory(runtime: Runtime, recipe: Recipe) -> None:
    """Logs the memory that each engine takes, counted after a step."""
    for name, engine in recipe.engines().items():
        runtime.run_log.message(f"{name}: on each rank, counted after a step: {engine.state.memory()}")


def _of_engine(runtime: Runtime, name: str, engine: Engine, first: Batch | None) -> Iterator[str]:
    ranks = runtime.ranks.world_size
    yield f"{name}: {sum(map(sum, engine.state.parameter_sizes())):,} parameters"
    yield f"{name}: on each rank, predicted: {runtime.predict(engine)}"
    if first is not None:
        samples = -(-first.size // (ranks * engine.grad_accumulation_steps))
        is_even = first.size == ranks * samples * engine.grad_accumulation_steps
        yield (
            f"{name}: global batch {first.size} = {ranks} ranks x {'' if is_even else 'up to '}{samples} samples "
            f"x {engine.grad_accumulation_steps} micro-batches"
        )


def _of_stages(runtime: Runtime, stages: Mapping[int, Stage], peak_bytes: Mapping[Any, int]) -> Iterator[str]:
    """The batch of each stage, how it is split, and the memory that its steps took when they were tried."""
    ranks, widest = runtime.ranks.world_size, max((len(stage.name) for stage in stages.values()), default=0)
    for key, stage in stages.items():
        share = stage.batch_size // (ranks * stage.grad_accumulation_steps)
        peak = peak_bytes.get(key, peak_bytes.get(str(key)))  # a manifest's keys are strings
        yield (
            f"plan: {stage.name:>{widest}}: global batch {stage.batch_size:>4} = {ranks} ranks x {share:>3} samples x "
            f"{stage.grad_accumulation_steps} micro-batches" + (f", {in_words(peak)} at most" if peak else "")
        )


def _of_data(recipe: Recipe) -> Iterator[str]:
    """The sizes of the training and held-out data, and the number of epochs."""
    if not isinstance(recipe.datasets, Datasets):  # a recipe of a user's own may use the name for something else
        return
    facts = recipe.datasets.describe()
    note = facts.pop("note", None)
    sizes = ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in facts.items()
    )
    epochs = recipe.epochs_at(recipe.num_samples)
    yield f"data: {sizes}"
    yield f"length: {recipe.num_samples:,} samples" + (f", {epochs:.3g} epochs" if epochs is not None else "")
    if note is not None:
        yield f"data: {note}"


def facts_of(recipe: Recipe, baselines: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Returns what an exported model says about its run: data, versions, how it trained, and baselines."""
    data = recipe.datasets.describe() if isinstance(recipe.datasets, Datasets) else {}
    data.pop("note", None)
    versions = {"trainkit": __version__, "torch": torch.__version__, "python": platform.python_version()}
    runtime = recipe.runtime
    training: dict[str, Any] = {"ranks": runtime.ranks.world_size, "strategy": runtime.strategy.name}
    training |= {"precision": runtime.precision.name, "seed": runtime.seed}
    for name, engine in recipe.engines().items():
        training[f"parameters of {name}"] = sum(map(sum, engine.state.parameter_sizes()))
    facts = {"data": data, "versions": versions, "baselines": baselines, "training": training}
    return facts | ({"task": recipe.task_name} if recipe.task_name else {})


def of_end(
    runtime: Runtime,
    recipe: Recipe,
    config: Mapping[str, Any],
    step: int,
    measured: Assessment,
    reason: str,
    kept: str | None,
    found: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Yields the verdict, then lines on the metrics, checkpoints, and commands that use them; none on ranks above 0.

    Args:
        runtime: of the run.
        recipe: of the run.
        config: as checkpoints hold it.
        step: steps done.
        measured: the last evaluation.
        reason: why the run ended early; empty: it did not.
        kept: a line that names the checkpoint to use.
        found: what was determined when the run started.
    """
    if not runtime.ranks.is_main:
        return
    run_dir = runtime.run_dir
    values = ", ".join(f"{name} {number(value)}" for name, value in measured.metrics.items())
    why = f" ({reason})" if reason else ""
    if measured.metrics:
        yield measured.verdict().text
    yield f"ended after step {step}{why}: {values or 'no metrics'}"
    yield from measured.lines()
    yield from _of_audit(found)
    if run_dir is None:
        yield "nothing was saved: there is no run_dir"
        return
    if kept is not None:
        yield kept
    yield f"run directory: {run_dir}"
    for words in (*recipe.next_commands(run_dir), *_commands_of(run_dir, config)):
        yield f"next: {as_typed(words)}"


def _commands_of(run_dir: Path, config: Mapping[str, Any]) -> list[list[str]]:
    """The commands that work for every recipe; `config` is empty for a Trainer that was made without."""
    if "recipe" not in config:
        return [["trainkit", "checkpoint", "ls", str(run_dir)]]
    try:
        require_ours({key: node for key, node in config.items() if key not in ("tracking", "comm")})
    except UntrustedError:
        return [["trainkit", "evaluate", str(run_dir), "--trust"]]
    return [["trainkit", "evaluate", str(run_dir)]]
