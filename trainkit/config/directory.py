"""The directory `conf/`, and the groups of options in it."""

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
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
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {name: sorted(options) for name, options in sorted(found.items())}
