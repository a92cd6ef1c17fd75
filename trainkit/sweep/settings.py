"""Settings: what a sweep varies, by which search, and how long; read from a file and from the command line."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from trainkit.config import check, compose_unresolved, groups, resolve
from trainkit.config.variation import Variation, variation_of
from trainkit.errors import ConfigError, nearest, require_at_least

SAMPLERS = ("tpe", "random", "grid", "cmaes", "nsga2", "pbt")
PRUNERS = ("none", "median", "halving", "hyperband")
_OF_TRIALS = {
    "run_dir": "each trial has a run directory of its own below --to",
    "copy_to": "checkpoints of trials are not copied to a store",
    "resume": "a trial resumes its own checkpoint",
    "checkpoint.identity": "set TRAINKIT_IDENTITY=FILE, which is not stored with the sweep",
}
_QUIET = ("console", "curve", "report")
"""Trackers that write a page, a picture or a line for each trial: `trainkit sweep` shows all trials in one place."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is searched, and how.

    Args:
        overrides: `key=value` of the configuration that all trials share.
        space: by key, the values that are tried: `0.1,0.2`, `range(1,9)`, `interval(0,0.5)` or `log(1e-4,1e-2)`.
        metric: what is minimized, or maximized after a `-`; two or more with commas for `nsga2`; None: the recipe's
            `best_metric`.
        sampler: which configuration comes next: `tpe`, `random`, `grid`, `cmaes`, `nsga2`, or `pbt`, population-based
            training, which changes values while members train.
        pruner: which trials are stopped early: `none`, by the `median` of the others, by successive `halving` of all,
            or by `hyperband`.
        trials: how many; None: 20, or all of a grid. Of `pbt` the members of the population; None: 8.
        interval: evaluations of a generation of `pbt`.
        reduction_factor: of `halving` and `hyperband`: of so many trials one goes on.
        seed: of the sampler.
        processes: of each trial.
    """

    overrides: tuple[str, ...] = ()
    space: Mapping[str, Any] = field(default_factory=dict)
    metric: str | None = None
    sampler: str = "tpe"
    pruner: str = "none"
    trials: int | None = None
    interval: int = 1
    reduction_factor: int = 3
    seed: int = 0
    processes: int = 1

    def variations(self) -> dict[str, Variation]:
        """The values of each key that is varied.

        Raises:
            ConfigError: for values that cannot be read.
        """
        found = {key: variation_of(key, values) for key, values in self.space.items()}
        return {key: variation for key, variation in found.items() if variation is not None}

    def fixed(self) -> tuple[str, ...]:
        """The overrides that all trials share, those of keys with one value included."""
        varied = self.variations()
        single = [f"{key}={value}" for key, value in self.space.items() if key not in varied]
        return (*_quiet(self.overrides), *self.overrides, *single)

    def facts(self) -> dict[str, Any]:
        """JSON-able values by name."""
        return {**asdict(self), "overrides": list(self.overrides), "space": dict(self.space)}


def of_words(words: Sequence[str], options: Mapping[str, Any]) -> tuple[str, Settings]:
    """Reads the settings that a user types.

    Args:
        words: files of settings, such as `conf/sweep/bert.yaml`, and `key=value` or `key=values`.
        options: of the command, by the name of the setting; None: not given.

    Returns:
        A name for the sweep, and the settings.

    Raises:
        ConfigError: for what cannot be read.
    """
    settings, name = Settings(), ""
    for word in words:
        if "=" not in word:
            settings, name = of_file(Path(word).expanduser(), settings), name or Path(word).stem
    overrides, space = [*settings.overrides], dict(settings.space)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            continue
        key = key.strip()
        overrides = [other for other in overrides if other.partition("=")[0] != key]  # the last word for a key counts
        space.pop(key, None)
        if variation_of(key, text) is None:
            overrides.append(word)
        else:
            space[key] = text
    given = {key: value for key, value in options.items() if value is not None}
    settings = replace(settings, overrides=tuple(overrides), space=space, **given)
    return name or _name(settings), settings


def of_file(path: Path, onto: Settings) -> Settings:
    """Reads a file of settings.

    Args:
        path: of YAML.
        onto: what the file does not say.

    Raises:
        ConfigError: naming the file and the key.
    """
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        hint = " A search is a file, such as conf/sweep/bert.yaml, and key=values"
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}.{hint}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no YAML: {error}") from error
    names = [item.name for item in fields(Settings)]
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must have keys such as {', '.join(names)}")
    for key in found:
        if key not in names:
            raise ConfigError(f"{path}: {key}: there is no such key; it has {', '.join(names)}.{nearest(key, names)}")
    for key, kind, what in (("overrides", list, "a list of key=value"), ("space", dict, "values by key")):
        if key in found and not isinstance(found[key], kind):
            raise ConfigError(f"{path}: {key}: must be {what}")
    if "overrides" in found:
        found["overrides"] = tuple(map(str, found["overrides"]))
    return replace(onto, **found)


def require_usable(settings: Settings, config_dir: Path | None = None) -> None:
    """Checks settings, and each value of the space by itself, before anything starts.

    Args:
        settings: to be checked.
        config_dir: a directory laid out like `conf/`.

    Raises:
        ConfigError: naming the key, the value, what is allowed, and the nearest valid name.
    """
    for name, allowed in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        value = getattr(settings, name)
        if value not in allowed:
            raise ConfigError(f"{name}={value}: must be one of {', '.join(allowed)}.{nearest(str(value), allowed)}")
    require_at_least(1, trials=settings.trials, processes=settings.processes, interval=settings.interval)
    require_at_least(2, reduction_factor=settings.reduction_factor)
    varied = settings.variations()
    if not varied:
        raise ConfigError(
            "nothing is varied: give a key several values, such as optimizer.lr=log(1e-4,1e-2) or "
            "recipe.mask_share=0.15,0.3"
        )
    keys = [override.partition("=")[0].lstrip("+~") for override in settings.fixed()] + [*varied]
    for key, why in _OF_TRIALS.items():
        if key in keys:
            raise ConfigError(f"{key}: leave it out; {why}")
    _require_search(settings, varied)
    _require_valid(settings, varied, config_dir)


def _require_search(settings: Settings, varied: Mapping[str, Variation]) -> None:
    if settings.sampler == "pbt":
        require_at_least(4, trials=settings.trials)
        if settings.pruner != "none":
            raise ConfigError(f"pruner={settings.pruner}: pbt replaces the worst members; use pruner=none")
    num_goals = len((settings.metric or "").split(","))
    if num_goals > 1 and settings.sampler in ("cmaes", "grid", "pbt"):
        raise ConfigError(f"sampler={settings.sampler}: searches for one metric; use nsga2 for {settings.metric}")
    if num_goals > 1 and settings.pruner != "none":
        raise ConfigError(f"pruner={settings.pruner}: compares one metric; use pruner=none with {settings.metric}")
    endless = [v for v in varied.values() if not v.choices and v.step is None]
    if settings.sampler == "grid" and endless:
        key, text = endless[0].key, endless[0].text
        raise ConfigError(f"sampler=grid: {key}={text} has no steps; give values, such as {key}=0.1,0.2,0.3")
    if settings.sampler == "cmaes" and all(v.choices for v in varied.values()):
        raise ConfigError("sampler=cmaes: searches ranges, and every key has single values here; use tpe")


def _require_valid(settings: Settings, varied: Mapping[str, Variation], config_dir: Path | None) -> None:
    """Holds each value against the types of the configuration, the others being the first of theirs."""
    from trainkit.training.accumulation import checkable  # imports PyTorch; the workers' server is to start before

    first = {key: variation.extremes()[0] for key, variation in varied.items()}
    for variation in varied.values():
        for override in variation.extremes():
            chosen = {**first, variation.key: override}
            composed = compose_unresolved([*settings.fixed(), *chosen.values()], config_dir)
            check(checkable(resolve(composed)))


def require_same(old: Mapping[str, Any], settings: Settings, directory: Path) -> None:
    """Refuses to go on with a sweep of another space.

    Args:
        old: `facts()` of the settings that the sweep was started with.
        settings: of now; the number of trials may be another one.
        directory: of the sweep.

    Raises:
        ConfigError: naming the first difference.
    """
    now = json.loads(json.dumps(settings.facts()))
    pairs = [
        (key, old.get("space", {}).get(key), now["space"].get(key)) for key in {**old.get("space", {}), **now["space"]}
    ]
    pairs += [
        (key, old.get(key), now[key])
        for key in ("overrides", "metric", "sampler", "pruner", "reduction_factor", "interval")
    ]
    for key, before, after in pairs:
        if before != after:
            raise ConfigError(
                f"--to {directory} has a sweep of another space: {key} was {_shown(before)}, and is {_shown(after)}; "
                f"give another --to"
            )


def _shown(value: Any) -> str:
    return "not varied" if value is None else " ".join(value) if isinstance(value, list) else str(value)


def _quiet(overrides: Sequence[str]) -> list[str]:
    """What trials do not show each by itself, where nothing else is asked for."""
    if any(override.partition("=")[0].lstrip("+~") == "tracking" for override in overrides):
        return []
    asked = {
        override.partition("=")[0].lstrip("+~").removeprefix("tracking.").partition(".")[0] for override in overrides
    }
    quiet = [f"tracking.{name}=false" for name in _QUIET if name not in asked]
    return [*quiet, *([] if "wandb" in asked else ["tracking.wandb=null"])]


def _name(settings: Settings) -> str:
    """Of the experiment or the recipe, where the user gave no file."""
    chosen = dict(override.partition("=")[::2] for override in settings.overrides)
    known = groups()
    for key in ("experiment", "recipe"):
        if chosen.get(key) in known[key]:
            return chosen[key]
    return f"sweep_{hashlib.sha256(json.dumps(settings.facts()).encode()).hexdigest()[:8]}"
