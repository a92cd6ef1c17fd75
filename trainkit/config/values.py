"""Values: each is held against the annotation of the argument that takes it, by pydantic."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from trainkit.config.schema import is_text, members
from trainkit.config.targets import is_node
from trainkit.errors import ConfigError
from trainkit.public_url import carries_credentials, is_url, redacted, where_credentials_belong

_RULES = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False, coerce_numbers_to_str=True)


def convert(path: str, value: Any, annotation: Any) -> Any:
    """Converts `value` to what `annotation` says, such as a list to a tuple; `~` in a path is the home directory.

    Args:
        path: the full key, for the message.
        value: as a configuration has it.
        annotation: of the argument; Any takes everything.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    if annotation is Any or annotation is None:
        return value
    adapter = _adapter(annotation)
    if adapter is None:
        return value
    _require_place(path, value, annotation)
    if value == "" and is_text(annotation):
        raise ConfigError(f"{path} is empty: give it a value, or {path}=null for none")
    try:
        return _expanded(path, adapter.validate_python(value), annotation)
    except ValidationError as error:
        allowed = "; or ".join(dict.fromkeys(detail["msg"] for detail in error.errors()))
        raise ConfigError(f"{path}={value!r}: {allowed}{_advice(path, value)}") from error


def _require_place(path: str, value: Any, annotation: Any) -> None:
    """Checks a URL in the place of a path: what is written here is kept in run directories, and shown."""
    kinds = members(annotation)
    if Path not in kinds or not is_url(value):
        return
    if carries_credentials(value):
        raise ConfigError(
            f"{path}={redacted(value)}: a URL must not carry credentials, which would be written into run directories "
            f"and logs; {where_credentials_belong(value)}"
        )
    if str not in kinds:
        raise ConfigError(f"{path}={redacted(value)}: must be a path of this machine; a URL is not read here")


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """What validates values of an annotation; None: pydantic knows nothing of it."""
    try:
        return TypeAdapter(annotation, config=_RULES)
    except PydanticSchemaGenerationError:
        return None
    except Exception as error:
        if "config" not in str(error):
            raise
        return TypeAdapter(annotation)  # a dataclass brings its own configuration


def holds_node(value: Any) -> bool:
    """Whether `value` is a node, or has one in it: such a value has its type only when it is built."""
    if isinstance(value, dict):
        return is_node(value) or any(holds_node(item) for item in value.values())
    return isinstance(value, list) and any(holds_node(item) for item in value)


def annotation_of_items(path: str, value: Any, annotation: Any) -> Any:
    """Returns the annotation of the items of a list or mapping that has nodes in it.

    Raises:
        ConfigError: `annotation` takes lists and `value` is a mapping, or the other way round.
    """
    wanted = Mapping if isinstance(value, dict) else Sequence
    kinds = [(get_origin(member) or member, get_args(member)) for member in members(annotation)]
    containers = [(kind, items) for kind, items in kinds if isinstance(kind, type) and issubclass(kind, _CONTAINERS)]
    fitting = [items for kind, items in containers if issubclass(kind, wanted)]
    if containers and not fitting:
        given, allowed = ("mapping", "list") if wanted is Mapping else ("list", "mapping of names")
        raise ConfigError(f"{path}={value!r}: is a {given}, and must be a {allowed}")
    return fitting[0][-1] if fitting and fitting[0] and fitting[0][-1] is not Ellipsis else Any


_CONTAINERS = (Mapping, list, tuple, Sequence)


def _advice(path: str, value: Any) -> str:
    if value == "auto" and path.endswith("batch_size"):
        return "; recipe.grad_accumulation_steps=auto finds the micro-batch that fits, and keeps the global batch"
    if isinstance(value, str) and value[:1] in ("[", "{"):
        return f'; it cannot be read: put each text in it in quotes, as in \'{path}=["one text", "another"]\''
    return ""


def _expanded(path: str, value: Any, annotation: Any) -> Any:
    if not isinstance(value, str | Path) or Path not in members(annotation):
        return value
    try:
        return type(value)(Path(value).expanduser()) if str(value).startswith("~") else value
    except RuntimeError as error:
        raise ConfigError(f"{path}={value}: {error}") from error
