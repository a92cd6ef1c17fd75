"""The link trainkit_recipes of a checkout, which a copy or a version control without links loses."""

import shlex
from pathlib import Path

from trainkit.errors import ConfigError

_ROOT = Path(__file__).parent.parent.parent
PACKAGE = "trainkit_recipes"


def require_link() -> None:
    """Requires the link in a checkout: without it, another checkout's or a wheel's recipes might be imported.

    Raises:
        ConfigError: with the command that makes the link.
    """
    link = _ROOT / PACKAGE
    if (_ROOT / "recipes" / "__init__.py").is_file() and not (link / "__init__.py").is_file():
        state = "is a file" if link.is_file() else "is missing"
        at, folder = shlex.quote(str(link)), shlex.quote(str(_ROOT / "recipes"))
        raise ConfigError(
            f"{link} {state}, and must be a link to recipes/, which this copy of the checkout has lost; "
            f"type: ln -sfn recipes {at} (on a file system without links: rm -f {at}; cp -r {folder} {at})"
        )
