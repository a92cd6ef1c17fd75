"""The link trainkit_recipes of a checkout, which a copy or a version control without links loses."""

import shlex
from importlib.util import find_spec
from pathlib import Path

from trainkit.errors import ConfigError

_ROOT = Path(__file__).parent.parent.parent
PACKAGE = "trainkit_recipes"


def require_link() -> None:
    """Requires the link in a checkout, unless the recipes of a wheel are installed.

    Raises:
        ConfigError: with the command that makes the link.
    """
    link = _ROOT / PACKAGE
    if find_spec(PACKAGE) is None and (_ROOT / "recipes" / "__init__.py").is_file():
        state = "is a file" if link.is_file() else "is missing"
        at, folder = shlex.quote(str(link)), shlex.quote(str(_ROOT / "recipes"))
        raise ConfigError(
            f"{link} {state}, and must be a link to recipes/, which this copy of the checkout has lost; "
            f"type: ln -sfn recipes {at} (on a file system without links: rm -f {at}; cp -r {folder} {at})"
        )
