"""The directory `conf/`, and the groups of options in it."""

import re
from pathlib import Path

from trainkit.errors import ConfigError

_PACKAGE = Path(__file__).parent.parent
_NO_GROUPS = {"cluster", "sweep"}
"""Folders beside the groups of a run: clusters of `trainkit launch`, and searches of `trainkit sweep`."""
_PACKAGED = _PACKAGE / "conf"
CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else _PACKAGE.parent / "conf"
"""Inside the package in a wheel, at the top of a checkout otherwise."""


def groups(config_dir: str | Path | None = None) -> dict[str, list[str]]:
    """Lists the options of every group.

    Args:
        config_dir: a directory laid out like `conf/`, whose options come in addition.

    Returns:
        The names of the options by the name of their group, both sorted.

    Example:
        >>> groups()["ops"]
        ['fused', 'reference']
    """
    found: dict[str, set[str]] = {}
    for root in (CONF_DIR, *([Path(config_dir).expanduser()] if config_dir is not None else [])):
        for path in root.glob("*/*.yaml"):
            if path.parent.name in _NO_GROUPS:
                continue
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {name: sorted(options) for name, options in sorted(found.items())}


def require_package_lines_first(config_dir: Path) -> None:
    """Requires that `# @package` stands above everything else in the files of a directory.

    Hydra 1.3 reads it only there. Below another comment it is silently ignored, and the keys of the file lie below the
    name of the group.

    Args:
        config_dir: a directory laid out like `conf/`.

    Raises:
        ConfigError: naming the file and the line.
    """
    for path in sorted(config_dir.glob("*/*.yaml")):
        is_top = True
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            is_header = re.match(r"\s*#\s*@package\s", line) is not None
            if is_header and not is_top:
                raise ConfigError(
                    f"{path}, line {number}: {line.strip()!r} must be the first line of the file: Hydra ignores it "
                    f"below another one"
                )
            is_top = is_top and (is_header or not line.strip())
