"""A job: from a configuration to a runtime, a recipe and a Trainer, in the order that finds errors before work."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainkit import checkpoint
from trainkit.config import build, build_partial, check, compose_onto
from trainkit.errors import CheckpointError
from trainkit.recipe import Recipe
from trainkit.runtime import Runtime
from trainkit.tracking import Tracker
from trainkit.trainer import Trainer


def train(config: Mapping[str, Any]) -> dict[str, float]:
    """Runs the whole job that `config` (as `compose` returns it) describes; the last evaluation's metrics.

    Collective: every process of the job calls.
    """
    return _prepare(config).fit()


def evaluate(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """The metrics of the checkpoint that `path` (a run or a checkpoint) means, measured anew. Collective."""
    recipe, runtime = load_recipe(path, overrides)
    metrics = recipe.evaluate()
    runtime.close()
    return metrics


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Runtime]:
    """The recipe of a run or a checkpoint with its trained engines, and the runtime it stands on. Collective.

    overrides: `key=value` on what the checkpoint was made with. Raises CheckpointError and ConfigError.
    """
    directory = checkpoint.find(Path(path).expanduser())
    config = checkpoint.read_manifest(directory)["values"].get("config")
    if not config:
        raise CheckpointError(f"{directory} was not written by a configured run: load it with runtime.load(...)")
    stored = {**config, "resume": str(directory), "run_dir": None}
    trainer = _prepare(compose_onto(stored, overrides), tracker=Tracker())
    trainer.restore()
    return trainer.recipe, trainer.runtime


def _prepare(config: Mapping[str, Any], tracker: Tracker | None = None) -> Trainer:
    checked = check(config)
    # What one process can find wrong by itself comes before the processes meet: paths, names, formats.
    make_recipe = build_partial(checked.recipe)
    runtime = Runtime(
        strategy=build(checked.strategy),
        precision=build(checked.precision),
        seed=checked.seed,
        deterministic=checked.deterministic,
        device=checked.device,
        num_workers=checked.num_workers,
        log_every=checked.log_every,
        run_dir=checked.run_dir,
        tracker=tracker or build(checked.tracking),
    )
    try:
        recipe = make_recipe(runtime)
    except BaseException:
        runtime.close("failed")
        raise
    return Trainer(
        runtime,
        recipe,
        evaluate_every=checked.evaluate_every,
        save_every=checked.save_every,
        keep_last=checked.keep_last,
        keep_best=checked.keep_best,
        resume=checked.resume,
        config=config,
    )
