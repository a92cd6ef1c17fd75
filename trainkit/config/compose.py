"""Composing: the configuration that overrides make of `conf/`, by Hydra."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainkit.config.directory import CONF_DIR, groups, require_package_lines_first
from trainkit.config.overrides import Override, quoted, read
from trainkit.config.schema import may_be_null, takes_text
from trainkit.config.targets import locate
from trainkit.config.tree import Node, adds_key, first_unknown, keys_of, place, source_of
from trainkit.errors import ConfigError, nearest


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Node:
    """Makes the configuration of `conf/train.yaml` and `overrides`, with interpolations resolved.

    Args:
        overrides: `key=value` in Hydra's grammar. A value that it cannot read is text as it stands, and so is every
            value of a key that takes text. Below a key that is `{}` in `conf/`, keys are free.
        config_dir: a directory laid out like `conf/`, whose files are found before ours.

    Raises:
        ConfigError: naming the key and the nearest valid one.
    """
    return resolve(compose_unresolved(overrides, config_dir))


def compose_unresolved(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Node:
    """As `compose`, with interpolations such as `${data}` left as they are, so that a later change acts everywhere."""
    given = read(overrides)
    options = groups(config_dir)
    for override in given:
        is_null = override.value is None and not may_be_null(override.key)
        if override.key in options and (override.is_a_guess or is_null):
            raise ConfigError(f"{override.key}={override.raw}: must be one of {', '.join(options[override.key])}")
    # Hydra has no word for "nothing of this group".
    left_out = [override.key for override in given if override.key in options and override.value is None]
    tree = _composed([override for override in given if override.key not in left_out], config_dir)
    tree.update((key, None) for key in left_out if key in tree)
    for override in given:
        if override.is_a_guess and takes_text(tree, override.key):
            place(tree, override.key, override.raw)
    _place_implied(tree, [source_of(tree, override.key) for override in given if override.key not in options])
    return tree


def _place_implied(tree: Node, typed: Sequence[str]) -> None:
    """Sets the arguments of the recipe that its `weights` imply, but for the full keys that were `typed`."""
    if (tree.get("weights"), (tree.get("recipe") or {}).get("weights")) in ((None, None), (None, "${weights}")):
        return  # what follows imports the recipe, which takes a while
    config = resolve(tree)
    implied = getattr(locate("recipe", config["recipe"]["_target_"]), "implied_by", None)
    for name, value in (implied(config) if implied is not None else {}).items():
        key = source_of(tree, f"recipe.{name}")
        if not any(key == own or key.startswith(f"{own}.") for own in typed):
            place(tree, key, value, is_new=True)


def compose_onto(config: Mapping[str, Any], overrides: Sequence[str], config_dir: str | Path | None = None) -> Node:
    """Changes keys of a configuration; what is a link to a key changes too.

    Args:
        config: resolved or not.
        overrides: `key=value` of keys that it has; `strategy=fsdp` and the like take that option of the group, with its
            defaults.
        config_dir: as for `compose`.

    Returns:
        The changed configuration, unresolved.

    Raises:
        ConfigError: naming the key and the nearest valid one.
    """
    changed = _relinked(config)
    options = groups(config_dir)
    given = read(overrides)
    choices = [override for override in given if override.value in options.get(override.key, ())]
    for override in choices:
        place(changed, override.key, compose_unresolved([override.text], config_dir)[override.key])
    rest = [override for override in given if override not in choices]
    new = {override.key for override in rest if adds_key(changed, override.key)}
    for override in rest:
        is_text = override.is_a_guess and takes_text(changed, override.key)
        place(changed, override.key, override.raw if is_text else override.value, is_new=override.key in new)
    return changed


def resolve(config: Mapping[str, Any]) -> Node:
    """Resolves the interpolations of `config`.

    Raises:
        ConfigError: an interpolation leads nowhere.
    """
    try:
        return _plain(OmegaConf.create(dict(config)), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(re.sub(r"\s+", " ", str(error))) from error


def to_yaml(config: Mapping[str, Any]) -> str:
    """Writes `config` as YAML, its keys in their order."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def _composed(given: Sequence[Override], config_dir: str | Path | None) -> Node:
    """What Hydra makes of `given`; keys below a mapping of free keys need no `+`."""
    try:
        return by_hydra("train", [override.text for override in given], config_dir)
    except (HydraException, OmegaConfBaseException) as error:
        failure = error
    if not _is_choices(given, config_dir):
        tree = _of_choices(given, config_dir)
        texts = [f"++{o.text.lstrip('+')}" if _adds(tree, o) else o.text for o in given]
        try:
            return by_hydra("train", texts, config_dir)
        except (HydraException, OmegaConfBaseException) as error:
            failure = error
    raise ConfigError(_explain(failure, given, config_dir)) from failure


def _adds(tree: Node, override: Override) -> bool:
    """Whether it may add keys without a `+`: free ones, and those of a mapping, which signatures can refuse."""
    of_mapping = isinstance(override.value, Mapping) and any(k.startswith(f"{override.key}.") for k in keys_of(tree))
    return of_mapping or adds_key(tree, override.key)


def by_hydra(name: str, texts: Sequence[str], config_dir: str | Path | None) -> Node:
    """Composes a file of `conf/` with Hydra, unresolved.

    Args:
        name: of the file, without its ending.
        texts: overrides in Hydra's grammar.
        config_dir: as for `compose`.

    Raises:
        ConfigError: there is no such `config_dir`.
        HydraException: an override is wrong.
        OmegaConfBaseException: likewise.
    """
    texts = list(texts)
    if config_dir is not None:
        path = Path(config_dir).expanduser().resolve()
        if not path.is_dir():
            raise ConfigError(f"--config-dir {config_dir}: there is no such directory")
        require_package_lines_first(path)
        texts.append(f"hydra.searchpath=[{quoted(f'file://{path}')}]")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR.resolve()), version_base="1.3"):
        return _plain(hydra_compose(name, texts), resolve=False)


def _plain(composed: Any, *, resolve: bool) -> Node:
    plain = OmegaConf.to_container(composed, resolve=resolve, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _relinked(config: Mapping[str, Any]) -> Node:
    """A copy in which the recipe's copies of other nodes, as checkpoints held them once, are links again."""
    copy = _plain(OmegaConf.create(dict(config)), resolve=False)
    recipe = copy.get("recipe")
    for key, node in copy.items():
        if isinstance(recipe, dict) and isinstance(node, dict) and recipe.get(key) == node:
            recipe[key] = f"${{{key}}}"
    return copy


# -- Hydra's errors in our words ---------------------------------------------------------------------------------------


def _explain(error: Exception, overrides: Sequence[Override], config_dir: str | Path | None) -> str:
    text = str(error)
    options = groups(config_dir)
    for override in overrides:
        key, value = override.key, override.raw
        if f"'{key}'" not in text and f"'{key}/{value}'" not in text:
            continue
        if key in options and value not in options[key]:
            return f"{key}={value}: must be one of {', '.join(options[key])}.{nearest(value, options[key])}"
        if _is_choices(overrides, config_dir):  # a file of the choice is at fault, not a key
            continue
        tree = _of_choices(overrides, config_dir)
        known = [*keys_of(tree), *options]
        source = source_of(tree, key)
        if source != key and source in known:
            return f"{key}={value}: type {source}={value}, of which it is a copy"
        if key not in known:
            unknown = first_unknown(known, key)
            return (
                f"{key}={value}: there is no key {unknown!r}.{nearest(unknown, known)} (a new key needs a + before it)"
            )
    if text.startswith("Error merging override"):
        for override in overrides:
            if text.endswith(f"{override.key}={override.raw}"):
                return f"{override.key}={override.raw}: is of another kind than what {override.key} has in conf/"
    return re.sub(r"\s+", " ", text)


def _is_choices(overrides: Sequence[Override], config_dir: str | Path | None) -> bool:
    options = groups(config_dir)
    return all(override.raw in options.get(override.key, ()) for override in overrides)


def _of_choices(overrides: Sequence[Override], config_dir: str | Path | None) -> Node:
    """The unresolved configuration that the group choices among `overrides` make."""
    options = groups(config_dir)
    choices = [f"{o.key}={o.raw}" for o in overrides if o.raw in options.get(o.key, ())]
    return compose_unresolved(choices, config_dir)
