"""Resume: the checkpoint that a run resumes, and what must agree with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trainkit.config import flat
from trainkit.errors import CheckpointError, ConfigError, TrainkitError
from trainkit.recipe import Recipe
from trainkit.runtime import Runtime


def where_to_resume(runtime: Runtime, resume: str) -> Path | None:
    """The run or checkpoint that `resume` means; None: start from scratch. Collective: every rank must call.

    Raises:
        CheckpointError: where one in a store cannot be fetched.
        ConfigError: for `never` in a run directory that has checkpoints.
        StorageError: where the store does not answer.
    """
    found, error = None, None
    if runtime.ranks.is_main:  # so that all see the same
        try:
            found = runtime.checkpoints.to_resume(resume)
        except TrainkitError as caught:
            error = caught
    runtime.ranks.raise_first(error)
    return runtime.ranks.broadcast_object(found)


def load_recipe_state(recipe: Recipe, path: Path, manifest: Mapping[str, Any]) -> None:
    """Gives the recipe the state that it stored in a checkpoint.

    Args:
        recipe: of the run.
        path: of the checkpoint.
        manifest: of the checkpoint.

    Raises:
        CheckpointError: where another recipe wrote it.
    """
    if "recipe" not in manifest["values"]:
        raise CheckpointError(f"{path} was not written by a Trainer: load it with runtime.load(...) in its own script")
    name, own, theirs = type(recipe).__name__, recipe.engines().keys(), manifest["engines"].keys()
    another = f"{path} was written by another recipe than {name}"
    advice = "give the run_dir or resume=... of a run of this recipe, or a new run_dir"
    if not own & theirs:
        raise CheckpointError(f"{another}: its engines are {', '.join(theirs)}, not {', '.join(own)}; {advice}")
    state = manifest["values"]["recipe"]
    try:
        recipe.load_state_dict(state)
    except KeyError as error:
        raise CheckpointError(f"{another}: its state has {', '.join(state)}, not {error}; {advice}") from error


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """A line that names the keys that differ between two configurations; None where none do."""
    old, new = flat(before), flat(now)
    changed = [
        f"{key} {old[key]} -> {new[key]}"
        for key in old
        if key in new and str(old[key]) != str(new[key]) and key not in ("run_dir", "resume", "copy_to")
    ]
    return f"changed since the checkpoint: {', '.join(changed)}" if changed else None


def other_data(
    path: Path,
    before: Mapping[str, str],
    now: Mapping[str, str],
    *,
    is_own: bool,
    data_changed: Literal["refuse", "accept"],
) -> str | None:
    """A line on data that are not those of a checkpoint; None where they are.

    Args:
        path: of the checkpoint.
        before: fingerprints of its data by name.
        now: fingerprints of the run's data by name.
        is_own: whether the run itself wrote the checkpoint.
        data_changed: see `Trainer`.

    Raises:
        ConfigError: where the data differ, the checkpoint is the run's own, and `data_changed` is `refuse`.
    """
    changed = [name for name, text in before.items() if now.get(name, text) != text]
    if not changed:
        return None
    what = f"the {' and '.join(changed)} data are not those that {path} was trained on"
    if is_own and data_changed == "refuse":
        raise ConfigError(
            f"{what}: give the data as they were, another run_dir, or data_changed=accept to continue with these"
        )
    return f"{what}; continues with the current data"
