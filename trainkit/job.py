"""A job: from a configuration to a runtime, a recipe and a Trainer, in the order that finds errors before work."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from trainkit import checkpoint
from trainkit.cache import asked_since
from trainkit.checkpoint.run_directory import user_of
from trainkit.config import Node, arguments_of, build, build_partial, check, compose_onto, flat, resolve
from trainkit.encryption import (
    Recipient,
    encrypt_files,
    hide_identity,
    plain_in_memory,
    recipients_of,
    room_in_memory,
    use_identity_of,
    without_identity,
)
from trainkit.errors import CheckpointError, ConfigError, nearest
from trainkit.evaluation import Assessment
from trainkit.export import Export, Exporter, Sealing
from trainkit.export.export import facts_of_run, require_free, whole
from trainkit.logger import logger
from trainkit.optim.dynamo import not_imported_by_optimizers
from trainkit.recipe import Recipe
from trainkit.runtime import Runtime
from trainkit.tracking import Tracker, Trackers
from trainkit.trainer import Trainer
from trainkit.training import accumulation, leakage, machines, memory_budget
from trainkit.training.assessing import assess
from trainkit.training.memory_budget import MemoryBudget
from trainkit.training.resume import where_to_resume
from trainkit.training.trust import require_ours

_BY_TORCH = {"_target_": "trainkit.Comm", "plan": "flat"}
_NO_ENCRYPTION: Node = {"_target_": "trainkit.encryption.Encryption", "recipients": [], "identity": None}
_NO_BUDGET: Node = {"_target_": "trainkit.training.memory_budget.MemoryBudget", "budget": None}
_UNTRACKED = {"_target_": "trainkit.tracking.trackers"}


@not_imported_by_optimizers()
def train(
    config: Mapping[str, Any],
    *,
    stop_after: int | None = None,
    observer: Tracker | None = None,
    goes_on: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Runs the whole job that a configuration describes. Collective: every rank must call.

    Args:
        config: as `compose` returns it, resolved or not.
        stop_after: steps after which it ends, with neither an evaluation nor a checkpoint, and with the schedules of
            the whole job; None: at its end.
        observer: a tracker beside those of the configuration, which does not become a part of it.
        goes_on: asked on rank 0 after each evaluation within the run; false: it saves, and ends as by SIGTERM. Given on
            all ranks, or on none.

    Returns:
        The metrics of the last evaluation; empty where it was stopped.

    Raises:
        TrainkitError: what is wrong, by its key where it is one.
    """
    hide_identity()
    trainer = _prepare(config, observer=observer)
    trainer.stop_after, trainer.goes_on = stop_after, goes_on
    return trainer.fit()


@not_imported_by_optimizers()
def new_recipe(config: Mapping[str, Any]) -> Recipe:
    """Makes the recipe of a configuration as `train` does, untrained and without trackers. Collective.

    Args:
        config: as `compose` returns it, resolved or not.

    Returns:
        The recipe. Its `runtime` is open: close it with `recipe.runtime.close()`.

    Raises:
        TrainkitError: what is wrong, by its key where it is one.
    """
    return _prepare(config, tracker=Tracker()).recipe


def evaluate(
    path: str | Path, overrides: Sequence[str] = (), *, config_dir: str | Path | None = None, trust: bool = False
) -> dict[str, float]:
    """Measures a trained recipe on its held-out data; see `assess_run`, of which it returns the metrics."""
    return dict(assess_run(path, overrides, config_dir=config_dir, trust=trust)[0].metrics)


def assess_run(
    path: str | Path, overrides: Sequence[str] = (), *, config_dir: str | Path | None = None, trust: bool = False
) -> tuple[Assessment, str | None]:
    """Measures a trained recipe on its held-out data. Collective: every rank must call.

    Args:
        path: a run directory, of which the newest checkpoint is taken, or a checkpoint.
        overrides: as for `load_recipe`.
        config_dir: as for `load_recipe`.
        trust: as for `load_recipe`.

    Returns:
        The metrics with their intervals and baselines, and what the audit of the data said when the run started; None:
        it was not audited.

    Raises:
        CheckpointError: as for `load_recipe`.
        ConfigError: as for `load_recipe`.
    """
    recipe = load_recipe(path, overrides, config_dir=config_dir, trust=trust)
    try:
        assessment = assess(recipe)
    finally:
        recipe.runtime.close()
    found = checkpoint.read_manifest(checkpoint.find(Path(path).expanduser()))["values"].get("found") or {}
    return assessment, found.get("audit", {}).get("line")


def export(
    path: str | Path,
    to: str,
    target: str | Path,
    overrides: Sequence[str] = (),
    *,
    averaged: bool | None = None,
    int8: Literal["dynamic", "static"] | None = None,
    max_drop: float = 0.01,
    encrypt: bool = False,
    recipients: Sequence[str] = (),
    config_dir: str | Path | None = None,
    trust: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Writes a trained model in the format of another program, completely or not at all. In one process.

    Args:
        path: a run directory that no process trains in, of which the newest checkpoint is taken; or a checkpoint.
        to: the format, one of the recipe's `exporters`.
        target: the file or directory to write.
        overrides: as for `load_recipe`.
        averaged: whether to export the averaged weights; None: those that the recipe evaluates with.
        int8: quantization, `dynamic` or `static`; needs the held-out data.
        max_drop: the largest drop by `int8` of the held-out metric that is accepted, in units of the metric.
        encrypt: whether each file is encrypted, with `.age` after its name, for the recipients of the checkpoint.
        recipients: public keys for which each file is encrypted in their place.
        config_dir: as for `load_recipe`.
        trust: as for `load_recipe`.
        report: called with lines for the user.

    Raises:
        CheckpointError: as for `load_recipe`; for a run that is being trained.
        ConfigError: for a format that the recipe does not have, a target that exists, and what the format cannot hold.
    """
    destination, run = Path(target).expanduser(), Path(path).expanduser()
    if not max_drop >= 0:
        raise ConfigError(f"--max-drop={max_drop}: must be 0 or more")
    directory = checkpoint.find(run, report)
    _use_given_identity(overrides)
    keys = _recipients(directory, encrypt, recipients)
    if keys:
        destination = destination.with_name(destination.name.removesuffix(".age"))
    for free in (destination, *([_with_suffix(destination)] if keys else [])):
        require_free(free)
    if directory != run and (user := user_of(run, report=report)) is not None:
        raise CheckpointError(
            f"{run} is being trained by {user}: wait for its end, or export one of its checkpoints, such as {directory}"
        )
    # One process on a CPU can read what any strategy wrote.
    plain = ["strategy=single", "device=cpu", "ops=reference", "compile=false", "num_workers=0"]
    recipe = load_recipe(
        directory, [*plain, *overrides], with_data=int8 is not None, config_dir=config_dir, trust=trust
    )
    try:
        exporter = _exporter(recipe, to)
        given = Export(
            target=destination,
            destination=destination,
            run=facts_of_run(_run_name(run), checkpoint.read_manifest(directory)),
            averaged=averaged,
            int8=int8,
            max_drop=max_drop,
        )
        for line in _written(exporter, given, keys):
            report(line)
    finally:
        recipe.runtime.close()


def _recipients(directory: Path, encrypt: bool, given: Sequence[str]) -> tuple[Recipient, ...]:
    """For whom an export is encrypted; empty: it is not."""
    if given or not encrypt:
        return recipients_of(given, "--recipient")
    stored = checkpoint.read_manifest(directory).get("encrypted_for")  # not what anybody could write beside it
    if not stored:
        raise ConfigError(f"--encrypt: {directory} is not encrypted, and so names nobody; give --recipient age1...")
    return recipients_of(stored, f"recipients of {directory}")


def _written(exporter: Exporter, given: Export, keys: Sequence[Recipient]) -> list[str]:
    """What the exporter says, once all that it wrote is in its place."""
    if not keys or isinstance(exporter, Sealing):
        with whole(given.destination) as temporary:
            return list(exporter(replace(given, target=temporary, recipients=tuple(keys))))
    with plain_in_memory() as memory:
        with room_in_memory():
            lines = list(exporter(replace(given, target=memory / given.destination.name, recipients=tuple(keys))))
        is_directory = (memory / given.destination.name).is_dir()
        final = given.destination if is_directory else _with_suffix(given.destination)
        with whole(final) as temporary:
            encrypt_files(memory, temporary.parent, keys)
    return [*lines, f"encrypted for {', '.join(key.text for key in keys)}: {final}"]


def _with_suffix(path: Path) -> Path:
    return path.with_name(f"{path.name}.age")


def _exporter(recipe: Recipe, to: str) -> Exporter:
    exporters, name = recipe.exporters(), type(recipe).__name__
    if to in exporters:
        return exporters[to]
    if not exporters:
        raise ConfigError(f"--to {to}: {name} has no formats to export to; its `exporters()` would name them")
    raise ConfigError(f"--to {to}: {name} exports to {', '.join(exporters)}.{nearest(to, exporters)}")


def _run_name(path: Path) -> str:
    """The name of the run directory that `path` is, or a checkpoint of."""
    path = path.resolve()
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.name


@not_imported_by_optimizers()
def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    with_data: bool = True,
    config_dir: str | Path | None = None,
    trust: bool = False,
) -> Recipe:
    """Makes the recipe of a run, with its trained engines. Collective: every rank must call.

    Args:
        path: a run directory, of which the newest checkpoint is taken, or a checkpoint.
        overrides: `key=value` on what the checkpoint was made with; each acts wherever its key was interpolated.
        with_data: false: no data are read, for a recipe that can do without them (see `Recipe.restored_arguments`); it
            cannot train or evaluate then.
        config_dir: a directory laid out like `conf/`, for options of groups.
        trust: true: whatever the checkpoint's configuration names is imported and called, such as a recipe of your own;
            false: only what is of trainkit, its recipes and torch.optim.

    Returns:
        The recipe. Its `runtime` is open: close it with `recipe.runtime.close()`.

    Raises:
        CheckpointError: there is no complete checkpoint, or it does not fit.
        ConfigError: an override is wrong; UntrustedError where `trust` is needed.

    Example:
        recipe = trainkit.load_recipe("runs/bert", ["device=cpu"])
        print(recipe.evaluate())
        recipe.runtime.close()
    """
    directory = checkpoint.find(Path(path).expanduser(), _say_once)
    _use_given_identity(overrides)
    values = checkpoint.read_manifest(directory)["values"]
    config = values.get("composed") or values.get("config")
    if not config:
        raise CheckpointError(f"{directory} was not written by a configured run: load it with runtime.load(...)")
    _require_of_use(overrides)
    stored = {**config, "tracking": _UNTRACKED, "resume": str(directory), "run_dir": None, "copy_to": None}
    stored["comm"] = _BY_TORCH  # the links may be others here, and nothing is reduced
    stored["memory"] = _NO_BUDGET
    stored["checkpoint"] = _NO_ENCRYPTION  # nothing is saved, and a stored configuration chooses no key of ours
    if not trust:
        require_ours(stored)
    changed = compose_onto(stored, overrides, config_dir)
    if not trust:
        require_ours(resolve(changed))
    adapt = partial(_as_restored, state=values["recipe"], with_data=with_data)
    trainer = _prepare(changed, tracker=Tracker(), make=adapt)
    trainer.restore()
    return trainer.recipe


def _say_once(text: str) -> None:
    """Says something before the processes of a job have met."""
    if int(os.environ.get("RANK", 0)) == 0:
        logger(__name__).warning(text)


def _use_given_identity(overrides: Sequence[str]) -> None:
    """Uses the identity that is typed: what the overrides change may be encrypted itself."""
    given = [text for text in overrides if text.lstrip("+").startswith("checkpoint.identity=")]
    use_identity_of(compose_onto({"checkpoint": _NO_ENCRYPTION}, given))


def _require_of_use(overrides: Sequence[str]) -> None:
    of_training = {"run_dir", "copy_to", "tracking", "log_every", "memory", *arguments_of(Trainer)}
    of_training |= {*arguments_of(leakage.look), *arguments_of(machines.look_at_machines)}
    for override in overrides:
        if override.lstrip("+~").partition("=")[0].partition(".")[0] in of_training:
            raise ConfigError(f"{override} changes nothing about a trained model: it is for training; leave it out")


def _as_restored(node: Node, state: Mapping[str, Any], with_data: bool) -> Callable[..., Recipe]:
    """`build_partial` of a recipe's node, with what the recipe takes in its place for a checkpoint of this `state`."""
    if "data" not in node:
        return build_partial(node)
    make = build_partial({**node, "data": None})
    recipe = getattr(make, "func", None)
    if not (isinstance(recipe, type) and issubclass(recipe, Recipe)):
        return build_partial(node)
    restored = None if with_data else recipe.restored_arguments(state, None)
    if restored is None:
        restored = recipe.restored_arguments(state, build(node["data"]))
    return partial(make, **(restored or {}))


def _prepare(
    config: Mapping[str, Any],
    tracker: Tracker | None = None,
    make: Callable[[Node], Callable[..., Recipe]] | None = None,
    observer: Tracker | None = None,
) -> Trainer:
    """Makes the Trainer. `make`: of a recipe's node; None: as configured, or as the resumed checkpoint needs."""
    with asked_since(time.monotonic()):  # files are looked at once, though the audit and every rank ask for them
        return _prepared(config, tracker, make, observer)


def _prepared(
    config: Mapping[str, Any],
    tracker: Tracker | None,
    make: Callable[[Node], Callable[..., Recipe]] | None,
    observer: Tracker | None,
) -> Trainer:
    composed, config = without_identity(config), resolve(config)
    searches = accumulation.configured(config) == "auto"
    checked = check(accumulation.checkable(config))
    # Errors that one process can find, such as paths, names and formats, are raised before the processes meet.
    _try_optimizer(checked["optimizer"])
    config = without_identity(config)
    make_recipe = (make or build_partial)(checked["recipe"])
    given = {key: build(checked[key]) for key in arguments_of(Runtime)}
    tracker = tracker or build(checked["tracking"])
    if observer is not None:
        tracker = tracker if isinstance(tracker, Trackers) else Trackers(configured=tracker)
        tracker.add("observer", observer)
    runtime = Runtime(**given, tracker=tracker)
    found: dict[str, Any] = {}
    audited: dict[str, Any] = {}
    try:
        runtime.ranks.require_same(flat(config))
        if make is None:
            machines.look_at_machines(runtime, machine_check=checked.get("machine_check", "report"))
            make_recipe = _as_resumed(make_recipe, runtime, checked["resume"])
        settings = {key: checked[key] for key in arguments_of(leakage.look) if key in checked}
        if make is None or settings.get("on_leak") == "drop":  # what was trained on is what was left
            looked = leakage.look(runtime, make_recipe, **settings)
            make_recipe, audited = looked.make_recipe, looked.found
        budget: MemoryBudget = build(checked["memory"])
        if budget.budget is not None:
            choice = memory_budget.find(runtime, make_recipe, config, budget)
            config, composed, found = choice.of(config), choice.of(composed), dict(choice.found)
            if choice.steps is not None:
                make_recipe = partial(make_recipe, grad_accumulation_steps=choice.steps)
            make_recipe = partial(memory_budget.measured, make_recipe=make_recipe, choice=choice)
        elif searches:
            found = accumulation.find(runtime, make_recipe, checked["resume"])
            config = accumulation.with_steps(config, found["grad_accumulation_steps"])
            composed = accumulation.with_steps(composed, found["grad_accumulation_steps"])
            make_recipe = partial(make_recipe, grad_accumulation_steps=found["grad_accumulation_steps"])
        cadence = {key: checked[key] for key in arguments_of(Trainer)}
        return Trainer(make_recipe(runtime), **cadence, config=config, composed=composed, found={**found, **audited})
    except BaseException:
        runtime.close("failed")
        raise


def _as_resumed(make_recipe: Callable[..., Recipe], runtime: Runtime, resume: str) -> Callable[..., Recipe]:
    """`make_recipe` with the data as the checkpoint that is resumed needs them. Collective.

    Other data must be encoded as before: text is split by the checkpoint's tokenizer. What the run once started from
    may be gone, and is not read again. All else, such as the length, is as configured.
    """
    path = where_to_resume(runtime, resume)
    recipe, data = getattr(make_recipe, "func", None), getattr(make_recipe, "keywords", {}).get("data")
    if path is None or data is None or not (isinstance(recipe, type) and issubclass(recipe, Recipe)):
        return make_recipe
    state = checkpoint.read_manifest(runtime.checkpoints.find(path))["values"].get("recipe", {})
    restored = recipe.restored_arguments(state, data) or {}
    return partial(make_recipe, **{key: restored[key] for key in ("data", *recipe.start_keys) if key in restored})


def _try_optimizer(node: Node) -> None:
    """Raises ConfigError naming the key that the optimizer's class refuses, before data are read."""
    refused = _refusal_of(node)
    if refused is None:
        return
    keys = [key for key in node if not key.startswith("_")]
    wrong = [key for key in keys if _refusal_of({k: v for k, v in node.items() if k != key}) is None]
    where = f"optimizer.{wrong[0]}={node[wrong[0]]}" if len(wrong) == 1 else f"optimizer={node['_target_']}"
    raise ConfigError(f"{where}: {refused}")


def _refusal_of(node: Node) -> str | None:
    try:
        build_partial(node)([torch.nn.Parameter(torch.zeros(2, 2))])
    except ConfigError:
        raise
    except ValueError as error:
        return str(error)
    return None
