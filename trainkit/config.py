"""Configuration: composed by Hydra from `conf/`, checked against types before anything starts, then built."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from trainkit.errors import ConfigError, TrainkitError, nearest

_PACKAGED = Path(__file__).parent / "conf"
CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "conf"

Node = dict[str, Any]
_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The keys of `conf/train.yaml`. Nodes with `_target_` hold that callable's own arguments."""

    recipe: Node  # what is trained: conf/recipe/
    data: Node  # on what: conf/data/
    optimizer: Node  # conf/optimizer/
    schedule: Node | None  # of the learning rate: conf/schedule/
    strategy: Node  # how it is spread over processes: conf/strategy/
    comm: Node  # how gradients are summed: conf/comm/
    precision: Node  # conf/precision/
    ops: Node  # compiled layers or plain PyTorch: conf/ops/
    tracking: Node  # who is told: conf/tracking/
    run_dir: Path | None  # strftime fields in it are filled in by rank 0's clock
    resume: str  # auto | never | the path of a run or a checkpoint
    data_changed: Literal["refuse", "accept"]  # where a run directory's checkpoint was trained on other data
    seed: int
    deterministic: bool  # the same bits again, from the same ranks and hardware
    device: Literal["auto", "cpu", "cuda"]
    compile: bool  # blocks of modules
    activation_checkpointing: list[str]  # classes of modules
    nonfinite: Literal["stop", "skip", "rewind"]  # a loss or gradient that is not finite
    num_workers: int  # loader processes a rank
    log_every: int  # steps
    evaluate_every: int | None  # steps; null: at the end
    save_every: int | None  # steps; null: at the end
    keep_last: int  # checkpoints
    keep_best: bool
    keep_every: int | None
    hang_after: float | Literal["auto"] | None  # seconds without progress; null: never


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> dict[str, Any]:
    """The configuration that `overrides` (Hydra's `key=value`) make of `conf/train.yaml`, interpolations resolved.

    config_dir: a directory laid out like `conf/`, whose files are found before ours.
    Raises ConfigError naming the key and the nearest valid one.
    """
    overrides = list(overrides)
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(f"{override!r} is not of the form key=value, such as recipe=bert or recipe.batch_size=32")
    if config_dir is not None:
        path = Path(config_dir).expanduser().resolve()
        if not path.is_dir():
            raise ConfigError(f"--config-dir {config_dir}: there is no such directory")
        overrides.append(f"hydra.searchpath=[file://{path}]")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR.resolve()), version_base="1.3"):
            return _plain(hydra_compose("train", overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, overrides, config_dir)) from error


def compose_onto(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`config` with `key=value` overrides of keys that it has; values are read as YAML.

    `strategy=fsdp` and the like take that option of the group, with its defaults.
    """
    changed = OmegaConf.create(dict(config))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or OmegaConf.select(changed, key, default=_ABSENT) is _ABSENT:
            raise ConfigError(f"{override}: there is no key {key!r}.{nearest(key, _keys_of(dict(config)))}")
        is_option = value in groups().get(key, ())
        node = compose([override])[key] if is_option else yaml.safe_load(value)
        OmegaConf.update(changed, key, node, merge=False)
    return _plain(changed)


def check(config: Mapping[str, Any]) -> TrainConfig:
    """`config` as typed values; every `_target_` node's arguments are held against its signature.

    Raises ConfigError naming the key, the value, what is allowed, and the nearest valid name.
    """
    _require_known("", config, [field.name for field in fields(TrainConfig)])
    hints = get_type_hints(TrainConfig)
    values = {}
    for field in fields(TrainConfig):
        if field.name not in config:
            raise ConfigError(f"{field.name} is missing from the configuration")
        values[field.name] = _convert(field.name, config[field.name], hints[field.name])
    for key in ("data", "optimizer", "schedule", "strategy", "comm", "precision", "ops", "tracking", "recipe"):
        if values[key] is not None:
            values[key] = _checked_node(key, values[key])
    return TrainConfig(**values)


def build(node: Any) -> Any:
    """What a checked node's `_target_` returns; errors of ours come through as they are."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, TrainkitError):
                raise cause from error
            cause = cause.__cause__
        raise ConfigError(f"{node.get('_target_')}: {_first_line(error.__cause__ or error)}") from error


def build_partial(node: Node) -> Callable[..., Any]:
    """The node's `_target_` with its arguments made and bound, to be called with the rest."""
    return build({**node, "_partial_": True})


def groups(config_dir: str | Path | None = None) -> dict[str, list[str]]:
    """The options of every group of `conf/`, and of `config_dir` beside it."""
    found: dict[str, set[str]] = {}
    for root in (CONF_DIR, *([Path(config_dir).expanduser()] if config_dir is not None else [])):
        for path in root.glob("*/*.yaml"):
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {name: sorted(options) for name, options in sorted(found.items())}


def flat(config: Mapping[Any, Any], path: str = "") -> dict[str, Any]:
    """Every value by its full key.

    >>> flat({"recipe": {"batch_size": 8, "model": {}}, "seed": 0})
    {'recipe.batch_size': 8, 'recipe.model': {}, 'seed': 0}
    """
    values: dict[str, Any] = {}
    for key, value in config.items():
        full = f"{path}.{key}" if path else str(key)
        values.update(flat(value, full) if isinstance(value, Mapping) and value else {full: value})
    return values


def to_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


# -- nodes against signatures ------------------------------------------------------------------------------------------


def _checked_node(path: str, node: Any) -> Any:
    if isinstance(node, list):
        return [_checked_node(f"{path}[{i}]", item) for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        return {key: _checked_node(f"{path}.{key}", value) for key, value in node.items()}
    target = _locate(path, node["_target_"])
    parameters = inspect.signature(target).parameters
    given = {key: value for key, value in node.items() if not (key.startswith("_") and key.endswith("_"))}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not takes_any:
        _require_known(path, given, [name for name in parameters if name not in ("self", "runtime")])
    hints = _hints(target)
    checked = {key: value for key, value in node.items() if key not in given}
    for key, value in given.items():
        where = f"{path}.{key}"
        if _is_node(value):
            checked[key] = _checked_node(where, value)
        else:
            checked[key] = _checked_node(where, _convert(where, value, hints.get(key, Any)))
    if not node.get("_partial_"):
        _require_all(path, parameters, given)
    return checked


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _locate(path: str, target: str) -> Callable[..., Any]:
    try:
        found = get_object(target)
    except Exception as error:
        raise ConfigError(f"{path}._target_={target}: cannot be imported: {_first_line(error)}") from error
    if not callable(found):
        raise ConfigError(f"{path}._target_={target}: is a {type(found).__name__}, not something to call")
    return found


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return get_type_hints(function)
    except (NameError, TypeError):
        # Annotations that only a type checker can resolve say nothing here; the names are still checked.
        return {}


def _require_known(path: str, given: Iterable[str], allowed: Sequence[str]) -> None:
    for key in given:
        if key not in allowed:
            full = f"{path}.{key}" if path else key
            raise ConfigError(
                f"{full}: there is no such key; {path or 'the configuration'} has {', '.join(allowed)}."
                f"{nearest(key, allowed)}"
            )


def _require_all(path: str, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> None:
    for name, parameter in parameters.items():
        is_named = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if is_named and parameter.default is parameter.empty and name not in given and name not in ("self", "runtime"):
            raise ConfigError(f"{path}.{name} is missing: give {path}.{name}=...")


def _convert(path: str, value: Any, annotation: Any) -> Any:
    if annotation is Any or annotation is None:
        return value
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return value
    except Exception as error:
        if "config" not in str(error):
            raise
        adapter = TypeAdapter(annotation)  # a dataclass brings its own configuration
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        allowed = "; or ".join(dict.fromkeys(detail["msg"] for detail in error.errors()))
        is_search = value == "auto" and path.endswith("batch_size")
        advice = "; recipe.accumulation=auto finds the micro-batch that fits, and keeps the global batch"
        raise ConfigError(f"{path}={value!r}: {allowed}{advice if is_search else ''}") from error


# -- Hydra's errors in our words ---------------------------------------------------------------------------------------


def _plain(composed: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _explain(error: Exception, overrides: Sequence[str], config_dir: str | Path | None) -> str:
    text = str(error)
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if f"'{key}'" not in text and f"'{key}/{value}'" not in text:
            continue
        options = groups(config_dir)
        if key in options and value not in options[key]:
            return f"{override}: allowed are {', '.join(options[key])}.{nearest(value, options[key])}"
        return (
            f"{override}: there is no key {key!r}.{nearest(key, _all_keys(overrides))} (a new key needs a + before it)"
        )
    return re.sub(r"\s+", " ", text)


def _all_keys(overrides: Sequence[str]) -> list[str]:
    """Every key of the configuration that the group choices among `overrides` make."""
    options = groups()
    choices = [
        o for o in overrides if o.partition("=")[0] in options and o.partition("=")[2] in options[o.partition("=")[0]]
    ]
    with initialize_config_dir(str(CONF_DIR.resolve()), version_base="1.3"):
        composed: Any = OmegaConf.to_container(hydra_compose("train", choices), resolve=False)
    return _keys_of(composed) + list(options)


def _keys_of(node: Mapping[Any, Any], path: str = "") -> list[str]:
    """`a`, `a.b`, `a.b.c` ...: the full name of every key in a tree of dicts."""
    keys = []
    for key, value in node.items():
        full = f"{path}.{key}" if path else str(key)
        keys += [full, *(_keys_of(value, full) if isinstance(value, dict) else [])]
    return keys


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
