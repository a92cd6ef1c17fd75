"""Configuration: that of a training run, made into that of a measurement."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainkit.benchmark.grid import Cell
from trainkit.config import Node, check, compose_unresolved, resolve
from trainkit.errors import ConfigError
from trainkit.training.accumulation import checkable

MEASURED = (
    *("resume=never", "run_dir=null", "on_leak=ignore", "tracking=none", "minutes=null", "patience=null"),
    *("evaluate_every=null", "save_every=null"),
)
"""A measurement trains; it neither evaluates, nor saves, nor audits data."""
COUNTED = ("strategy=single", "precision=fp32", "ops=reference", "compile=false", "activation_checkpointing=[]")
"""FLOPs are those of the model, whatever the kernels, and what is computed twice counts once."""


def config_of(cell: Cell, config_dir: str | Path | None = None) -> Node:
    """The configuration of a cell, checked.

    Args:
        cell: of the grid.
        config_dir: a directory laid out like `conf/`.

    Raises:
        ConfigError: naming the key and the nearest valid one.
    """
    own = [f"precision={cell.precision}", f"strategy={cell.strategy}"]
    return _checked([*MEASURED, *cell.model.overrides, *own], config_dir)


def config_of_count(cell: Cell, config_dir: str | Path | None = None) -> Node:
    """The configuration with which the FLOPs of a cell's model are counted; otherwise as `config_of`."""
    return _checked([*MEASURED, *cell.model.overrides, *COUNTED], config_dir)


def _checked(overrides: Sequence[str], config_dir: str | Path | None) -> Node:
    config = compose_unresolved(overrides, config_dir)
    check(checkable(resolve(config)))
    return config


def batch_size_of(config: Mapping[str, Any]) -> int | None:
    """The configured batch size; of a mapping by stage the last one's. None: the recipe has no such key."""
    recipe = resolve(config).get("recipe") or {}
    given = recipe.get("batch_size")
    phases = recipe.get("phases")
    if isinstance(phases, Mapping) and phases:  # the first one is measured
        given = next(iter(phases.values())).get("batch_size") or given
    if isinstance(given, Mapping):
        return int(given[max(given)])
    return None if given is None else int(given)


def with_batch_size(config: Mapping[str, Any], num: int) -> Node:
    """A copy with this global batch in every part of the run, in one micro-batch.

    Args:
        config: resolved or not.
        num: samples of the global batch.

    Raises:
        ConfigError: where the recipe has no batch size.
    """
    recipe = dict(config["recipe"])
    if "batch_size" not in recipe:
        raise ConfigError(f"--batch-size={num}: {recipe.get('_target_')} has no key recipe.batch_size; leave it out")
    recipe["batch_size"] = num
    if "grad_accumulation_steps" in recipe:
        recipe["grad_accumulation_steps"] = 1
    if isinstance(recipe.get("phases"), Mapping):
        recipe["phases"] = {
            name: {key: value for key, value in phase.items() if key not in ("batch_size", "grad_accumulation_steps")}
            for name, phase in recipe["phases"].items()
        }
    if recipe.get("batch_size_warmup") is not None:
        recipe["batch_size_warmup"] = None
    if recipe.get("length_warmup") is not None:
        recipe["length_warmup"] = None
    return {**config, "recipe": recipe}
