"""Building: checked nodes become objects."""

from collections.abc import Callable
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from trainkit.config.targets import first_line
from trainkit.config.tree import Node
from trainkit.config.values import holds_node
from trainkit.errors import ConfigError, TrainkitError


def build(value: Any) -> Any:
    """Calls the `_target_` of a checked node, and of those in it; any other value is returned as it is.

    Raises:
        TrainkitError: as the callable raises it.
        ConfigError: the callable raises another error.
    """
    if not holds_node(value):
        return value
    try:
        return instantiate(value, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, TrainkitError):
                raise cause from error
            cause = cause.__cause__
        raise ConfigError(f"{value.get('_target_')}: {first_line(error.__cause__ or error)}") from error


def build_partial(node: Node) -> Callable[..., Any]:
    """Returns the node's `_target_` with its arguments built and bound, to be called with the rest.

    Raises:
        TrainkitError: as for `build`.
    """
    made: Callable[..., Any] = build({**node, "_partial_": True})
    return made
