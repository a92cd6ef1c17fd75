"""Best: the configuration of one trial by itself, as a command to type and as an experiment file."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainkit.checkpoint import write_text
from trainkit.config import CONF_DIR, Node, compose_onto, compose_unresolved, flat, groups, resolve, to_yaml
from trainkit.config.overrides import read
from trainkit.config.tree import place, source_of
from trainkit.encryption import without_identity
from trainkit.errors import ConfigError, TrainkitError
from trainkit.json_text import read_bounded
from trainkit.sweep import table
from trainkit.sweep.study import TRIALS, Study
from trainkit.sweep.trial import Trial
from trainkit.tracking.command import as_typed
from trainkit.training import accumulation

APART = ("run_dir", "copy_to", "resume", "tracking")
"""Keys of a trial that are the sweep's."""
_EXPERIMENT = "experiment"
_CONFIG_FILE = "config.yaml"
_MISSING = object()


def chosen(study: Study, number: int | None = None) -> list[Trial]:
    """The best trial, or one that is asked for.

    Args:
        study: of the sweep.
        number: of the trial; None: the best one; of several metrics all of the Pareto front.

    Raises:
        ConfigError: there is none.
    """
    trials = study.trials()
    if number is not None:
        found = [trial for trial in trials if trial.number == number]
        if not found:
            raise ConfigError(f"{study.run_dir(number)}: the sweep has no trial {number}; it has {len(trials)}")
        return found
    best = table.front(trials, study.signs)
    if not best:
        raise ConfigError(
            f"{study.directory}: no trial has finished ({table.counts(trials)}); see trainkit sweep show, and give "
            f"the directory of a trial, such as {study.run_dir(0)}, for one that has not"
        )
    return best


def overrides(study: Study, trial: Trial) -> list[str]:
    """The overrides that a trial's configuration has, without those that keep a trial of many quiet."""
    varied = study.settings.variations()
    single = [f"{key}={value}" for key, value in study.settings.space.items() if key not in varied]
    return [*study.settings.overrides, *single, *study.overrides(trial)]


def command(study: Study, trial: Trial, config_dir: Path | None = None) -> str:
    """The line that trains the configuration of a trial alone, in a run directory of its own.

    Args:
        study: of the sweep.
        trial: one of it.
        config_dir: as for `compose`.
    """
    run_dir = study.directory.with_name(f"{study.directory.name}_trial_{trial.number}")
    of_run = [*_options(study, config_dir), *overrides(study, trial), f"run_dir={_shown(run_dir)}"]
    return as_typed(["trainkit", "train", *of_run])


def history(study: Study, trial: Trial) -> str | None:
    """That a trial went on from the checkpoints of others, in words; None: it has started by itself."""
    parent = trial.record.parent
    if parent is None:
        return None
    trials, numbers = study.trials(), []
    while parent is not None and parent not in numbers:
        numbers.append(parent)
        parent = trials[parent].record.parent
    before = ", ".join(map(str, numbers))
    return (
        f"trial {trial.number} went on from the checkpoints of trial {before}, whose values were others: alone, its "
        f"configuration starts anew, and may end elsewhere"
    )


def configuration(study: Study, trial: Trial, config_dir: Path | None = None) -> Node:
    """The configuration that a trial was trained with, unresolved.

    Args:
        study: of the sweep.
        trial: one of it.
        config_dir: as for `compose`.

    Raises:
        ConfigError: it cannot be composed any more, or becomes another one.
    """
    options = {*groups(config_dir), "weights"}
    given = study.overrides(trial)
    by_hydra = [text for text in given if text.partition("=")[0] in options or text.startswith("+")]
    rest = [text for text in given if text not in by_hydra]
    try:
        made = compose_onto(compose_unresolved([*study.settings.fixed(), *by_hydra], config_dir), rest, config_dir)
        resolved = resolve(made)
    except ConfigError as error:
        raise ConfigError(
            f"trial {trial.number} cannot be composed by conf/ as it is now: {error}; where the sweep had a "
            f"--config-dir, give it again"
        ) from error
    _require_unchanged(study.run_dir(trial.number), without_identity(resolved))
    return made


def write_experiment(study: Study, trial: Trial, path: Path, config_dir: Path | None = None) -> str:
    """Writes a file that makes the configuration of a trial an experiment of its own.

    It is composed before it is put in its place: apart from `run_dir`, `resume` and `tracking` its configuration is the
    trial's.

    Args:
        study: of the sweep.
        trial: one of it.
        path: `experiment/NAME.yaml` in `conf/` or a directory laid out like it; it must not exist.
        config_dir: as for `compose`.

    Returns:
        The line that trains it.

    Raises:
        ConfigError: naming the first key that would be another, or why the file cannot be written.
    """
    root, name = path.parent.parent, path.stem
    if path.suffix != ".yaml" or path.parent.name != _EXPERIMENT:
        raise ConfigError(
            f"--write {path}: must be {_EXPERIMENT}/NAME.yaml in conf/, such as conf/experiment/best.yaml"
        )
    if path.exists():
        raise ConfigError(f"--write {path}: there is such a file; give another name, or remove it")
    if root.resolve() != CONF_DIR.resolve():
        config_dir = _same_options(config_dir, root, path)
    if name in groups(config_dir).get(_EXPERIMENT, ()):
        raise ConfigError(f"--write {path}: there is an experiment {name} already; give another name")
    text = experiment(study, trial, config_dir)
    _require_same(text, name, resolve(configuration(study, trial, config_dir)), path, config_dir)
    try:
        write_text(path, text)
    except OSError as error:
        raise ConfigError(f"--write {path}: cannot be written: {error.strerror or error}") from error
    return as_typed(["trainkit", "train", *_options(study, config_dir), f"{_EXPERIMENT}={name}"])


def experiment(study: Study, trial: Trial, config_dir: Path | None = None) -> str:
    """The text of an experiment file for a trial; see `write_experiment`, which checks it."""
    made, options = configuration(study, trial, config_dir), groups(config_dir)
    base, choices = None, {}
    keys: Node = {}
    for override in read(overrides(study, trial)):
        if override.key == _EXPERIMENT:
            base = override.value
        elif override.value in options.get(override.key, ()):
            choices[override.key] = override.value
        else:
            source = source_of(made, override.key)
            value = _at(made, source)
            if value is not _MISSING:
                place(keys, source, value, is_new=True)
    defaults: list[Any] = [base, "_self_"] if base is not None else []
    defaults += [{f"override /{group}": option} for group, option in choices.items()]
    return _text(study, trial, defaults, keys)


def _text(study: Study, trial: Trial, defaults: Sequence[Any], keys: Mapping[str, Any]) -> str:
    about = table.named(trial, study.metrics) if table.results(trial) else f"trial {trial.number}, {trial.state}"
    lines = ["# @package _global_", f"# Of {study.directory.name}, {about}"]
    text = "".join(" ".join(line.split()) + "\n" for line in lines)
    return text + (to_yaml({"defaults": [*defaults]}) if defaults else "") + (to_yaml(keys) if keys else "")


def _require_same(text: str, name: str, wanted: Node, path: Path, config_dir: Path | None) -> None:
    """Composes the file beside the others before it is in its place."""
    with tempfile.TemporaryDirectory(prefix="trainkit_experiment_") as made:
        root = Path(made)
        for file in config_dir.glob("*/*.yaml") if config_dir is not None else ():
            (root / file.parent.name).mkdir(exist_ok=True)
            shutil.copyfile(file, root / file.parent.name / file.name)
        (root / _EXPERIMENT).mkdir(exist_ok=True)
        (root / _EXPERIMENT / f"{name}.yaml").write_text(text)
        try:
            found = resolve(compose_unresolved([f"{_EXPERIMENT}={name}"], root))
        except TrainkitError as error:
            raise ConfigError(f"--write {path}: as an experiment file it cannot be composed: {error}") from error
    differences = _differences(found, wanted)
    if differences:
        key, is_now, was = differences[0]
        raise ConfigError(
            f"--write {path}: as an experiment file, {key} would be {_value(is_now)}, and is {_value(was)} in the "
            f"trial; type the command instead"
        )


def _require_unchanged(run_dir: Path, made: Node) -> None:
    """Holds a configuration that was composed now against the one that the trial wrote."""
    try:
        stored = yaml.safe_load(read_bounded(run_dir / _CONFIG_FILE))
    except (OSError, ValueError, yaml.YAMLError):
        return
    # What was searched for is in the file.
    is_searched = accumulation.configured(made) == "auto" or (made.get("memory") or {}).get("budget") is not None
    if not isinstance(stored, dict) or is_searched:
        return
    differences = _differences(yaml.safe_load(to_yaml(made)), stored)
    if differences:
        key, is_now, was = differences[0]
        raise ConfigError(
            f"{key} was {_value(was)} in {run_dir / _CONFIG_FILE}, and is {_value(is_now)} by conf/ now: conf/ has "
            f"changed, or --config-dir is another one than of the sweep"
        )


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Keys whose values are not the same, their types included."""
    first, second = (flat({k: v for k, v in each.items() if k not in APART}) for each in (a, b))
    pairs = [(key, first.get(key, _MISSING), second.get(key, _MISSING)) for key in {**first, **second}]
    return [(key, x, y) for key, x, y in pairs if repr(x) != repr(y)]


def _same_options(config_dir: Path | None, root: Path, path: Path) -> Path:
    """The directory of the file, which is the only one then that a command can name."""
    if config_dir is not None and config_dir.resolve() != root.resolve():
        raise ConfigError(
            f"--write {path}: a command reads one --config-dir; write it into {config_dir}/{_EXPERIMENT}/"
        )
    return config_dir or root


def _options(study: Study, config_dir: Path | None) -> list[str]:
    num = study.settings.processes
    given = ["--config-dir", str(config_dir)] if config_dir is not None else []
    return [*given, *(["--processes", str(num)] if num > 1 else [])]


def number_of(path: Path) -> tuple[Path, int | None]:
    """The sweep that a path is the directory of, or that it is the directory of a trial of.

    Args:
        path: such as `runs/sweep_bert`, or `runs/sweep_bert/trials/00012`.

    Returns:
        The directory of the sweep, and the number of the trial; None: the path is that of the sweep.
    """
    parent, name = path.parent, path.name
    is_trial = parent.name == TRIALS and name.isascii() and name.isdecimal()
    return (parent.parent, int(name)) if is_trial else (path, None)


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _at(tree: Mapping[str, Any], key: str) -> Any:
    node: Any = tree
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return _MISSING
        node = node[name]
    return node


def _value(value: Any) -> str:
    return "missing" if value is _MISSING else repr(value)
