"""Configuration: composed by Hydra from `conf/`, checked against types before anything starts, then built."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from trainkit.config.overrides import Override, keys_of, owner, place, quoted, read, source_of
from trainkit.errors import ConfigError, TrainkitError, nearest

_PACKAGE = Path(__file__).parent.parent
_PACKAGED = _PACKAGE / "conf"
CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else _PACKAGE.parent / "conf"

Node = dict[str, Any]


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
    minutes: float | None  # of training; null: as long as the recipe says
    patience: int | None  # evaluations without a better metric of the recipe; null: any number
    keep_last: int  # checkpoints
    keep_best: bool
    keep_every: int | None
    hang_timeout_s: float | Literal["auto"] | None  # seconds without progress; null: never


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> dict[str, Any]:
    """The configuration that `overrides` (Hydra's `key=value`) make of `conf/train.yaml`, interpolations resolved.

    A value that Hydra's grammar cannot read is text as it stands, and so is every value of a key that takes text.
    config_dir: a directory laid out like `conf/`, whose files are found before ours.
    Raises ConfigError naming the key and the nearest valid one.
    """
    return resolve(compose_unresolved(overrides, config_dir))


def compose_unresolved(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> dict[str, Any]:
    """As `compose`, with interpolations such as `${data}` left as they are, so that a later change acts everywhere."""
    given = read(overrides)
    options = groups(config_dir)
    for override in given:
        is_null = override.value is None and not _may_be_null(override.key)
        if override.key in options and (override.is_a_guess or is_null):
            raise ConfigError(f"{override.key}={override.raw}: allowed are {', '.join(options[override.key])}")
    # Hydra has no word for "nothing of this group".
    left_out = [override.key for override in given if override.key in options and override.value is None]
    texts = [override.text for override in given if override.key not in left_out]
    if config_dir is not None:
        path = Path(config_dir).expanduser().resolve()
        if not path.is_dir():
            raise ConfigError(f"--config-dir {config_dir}: there is no such directory")
        texts.append(f"hydra.searchpath=[{quoted(f'file://{path}')}]")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR.resolve()), version_base="1.3"):
            tree = _plain(hydra_compose("train", texts), resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, given, config_dir)) from error
    tree.update((key, None) for key in left_out if key in tree)
    for override in given:
        if override.is_a_guess and _takes_text(tree, override.key):
            place(tree, override.key, override.raw)
    return tree


def compose_onto(
    config: Mapping[str, Any], overrides: Sequence[str], config_dir: str | Path | None = None
) -> dict[str, Any]:
    """`config`, resolved or not, with `key=value` overrides of keys that it has; what is a link to a key changes too.

    `strategy=fsdp` and the like take that option of the group, with its defaults. The result is unresolved.
    """
    changed = _relinked(config)
    options = groups(config_dir)
    for override in read(overrides):
        key, value = override.key, override.value
        if value in options.get(key, ()):
            value = compose_unresolved([override.text], config_dir)[key]
        elif override.is_a_guess and _takes_text(changed, key):
            value = override.raw
        place(changed, key, value)
    return changed


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with its interpolations resolved. Raises ConfigError."""
    try:
        return _plain(OmegaConf.create(dict(config)), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(re.sub(r"\s+", " ", str(error))) from error


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
    _require_usable_targets(values)
    for key in ("data", "optimizer", "schedule", "strategy", "comm", "precision", "ops", "tracking", "recipe"):
        if values[key] is not None:
            values[key] = _checked_node(key, values[key])
    return TrainConfig(**values)


def _require_usable_targets(values: Mapping[str, Any]) -> None:
    """What an optimizer or a schedule cannot be here, before its arguments are held against another's."""
    target = (values["optimizer"] or {}).get("_target_")
    step = getattr(_locate("optimizer", target), "step", None) if target else None
    closure = inspect.signature(step).parameters.get("closure") if step is not None else None
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(
            f"optimizer._target_={target}: it evaluates the loss several times in a step, and an engine's step has one "
            f"gradient; use another, such as optimizer=adamw"
        )
    target = (values["schedule"] or {}).get("_target_")
    if target and "optimizer" in inspect.signature(_locate("schedule", target)).parameters:
        raise ConfigError(
            f"schedule._target_={target}: it sets rates step by step, and a schedule here is a function of the "
            f"position in the data; allowed are schedule={', '.join(groups()['schedule'])}, or null"
        )


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
    made: Callable[..., Any] = build({**node, "_partial_": True})
    return made


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
        found: Any = get_object(target)
    except Exception as error:
        raise ConfigError(f"{path}._target_={target}: cannot be imported: {_first_line(error)}") from error
    if not callable(found):
        raise ConfigError(f"{path}._target_={target}: is a {type(found).__name__}, not something to call")
    located: Callable[..., Any] = found
    return located


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return get_type_hints(function, include_extras=True)
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
    rules = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False, coerce_numbers_to_str=True)
    try:
        adapter = TypeAdapter(annotation, config=rules)
    except PydanticSchemaGenerationError:
        return value
    except Exception as error:
        if "config" not in str(error):
            raise
        adapter = TypeAdapter(annotation)  # a dataclass brings its own configuration
    if value == "" and _is_text(annotation):
        raise ConfigError(f"{path} is empty: give it a value, or {path}=null for none")
    try:
        return _expanded(path, adapter.validate_python(value))
    except ValidationError as error:
        allowed = "; or ".join(dict.fromkeys(detail["msg"] for detail in error.errors()))
        raise ConfigError(f"{path}={value!r}: {allowed}{_advice(path, value)}") from error


def _advice(path: str, value: Any) -> str:
    if value == "auto" and path.endswith("batch_size"):
        return "; recipe.grad_accumulation_steps=auto finds the micro-batch that fits, and keeps the global batch"
    if isinstance(value, str) and value[:1] in ("[", "{"):
        return f'; it cannot be read: put each text in it in quotes, as in \'{path}=["one text", "another"]\''
    return ""


def _expanded(path: str, value: Any) -> Any:
    try:
        return value.expanduser() if isinstance(value, Path) else value
    except RuntimeError as error:
        raise ConfigError(f"{path}={value}: {error}") from error


def _takes_text(tree: Mapping[str, Any], key: str) -> bool:
    """Whether the argument at the dotted `key` is annotated as text or a path, and as nothing else."""
    found = owner(tree, key)
    if found is None:
        return False
    node, name = found
    if node is tree:
        return _is_text(get_type_hints(TrainConfig).get(name, Any))
    try:
        return _is_text(_hints(_locate(key, node["_target_"])).get(name, Any))
    except (KeyError, ConfigError):
        return False  # no arguments of a callable, or none that can be imported: `check` says so


def _may_be_null(group: str) -> bool:
    return NoneType in get_args(get_type_hints(TrainConfig).get(group, str | None))


def _is_text(annotation: Any) -> bool:
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    kinds = {member for member in members if member is not NoneType and get_origin(member) is not Literal}
    return bool(kinds) and kinds <= {str, Path}


# -- Hydra's errors in our words ---------------------------------------------------------------------------------------


def _plain(composed: Any, *, resolve: bool) -> dict[str, Any]:
    plain = OmegaConf.to_container(composed, resolve=resolve, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _relinked(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which the recipe's copies of other nodes, as checkpoints held them once, are links again."""
    copy = _plain(OmegaConf.create(dict(config)), resolve=False)
    recipe = copy.get("recipe")
    for key, node in copy.items():
        if isinstance(recipe, dict) and isinstance(node, dict) and recipe.get(key) == node:
            recipe[key] = f"${{{key}}}"
    return copy


def _explain(error: Exception, overrides: Sequence[Override], config_dir: str | Path | None) -> str:
    text = str(error)
    options = groups(config_dir)
    for override in overrides:
        key, value = override.key, override.raw
        if f"'{key}'" not in text and f"'{key}/{value}'" not in text:
            continue
        if key in options and value not in options[key]:
            return f"{key}={value}: allowed are {', '.join(options[key])}.{nearest(value, options[key])}"
        tree = _of_choices(overrides, config_dir)
        known = [*keys_of(tree), *options]
        source = source_of(tree, key)
        if source != key and source in known:
            return f"{key}={value}: type {source}={value}, of which it is a copy"
        if key not in known:
            return f"{key}={value}: there is no key {key!r}.{nearest(key, known)} (a new key needs a + before it)"
    return re.sub(r"\s+", " ", text)


def _of_choices(overrides: Sequence[Override], config_dir: str | Path | None) -> dict[str, Any]:
    """The unresolved configuration that the group choices among `overrides` make."""
    options = groups(config_dir)
    choices = [f"{o.key}={o.raw}" for o in overrides if o.raw in options.get(o.key, ())]
    return compose_unresolved(choices, config_dir)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
