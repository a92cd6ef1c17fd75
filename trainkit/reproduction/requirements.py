"""Requirements: the packages of a manifest, as pip and uv install them."""

from collections.abc import Mapping
from typing import Any

_FIRST = ("setuptools", "wheel", "numpy", "torch")
_NOT_INSTALLED = ("trainkit", "pip", "uv")


def requirements(environment: Mapping[str, Any]) -> list[str]:
    """Returns the exact versions of the packages that a run needed, without trainkit, which comes from its own source.

    Args:
        environment: of a manifest.

    Returns:
        Lines for a requirements file; first what others need to be built.

    Example:
        >>> requirements({"packages": {"numpy": {"version": "2.4.1"}, "torch": {"version": "2.13.0+cpu"}}})
        ['numpy==2.4.1', 'torch==2.13.0+cpu']
    """
    packages = environment.get("packages")
    found = packages if isinstance(packages, Mapping) else {}
    needed = environment.get("needed")
    used = {*_FIRST, *needed} if isinstance(needed, list) else {*found}
    names = [name for name in found if name in used - {*_NOT_INSTALLED} and isinstance(found[name], Mapping)]
    ordered = sorted(names, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    return [f"{name}=={found[name].get('version')}" for name in ordered]


def is_local(environment: Mapping[str, Any]) -> str | None:
    """Returns the local version of torch, such as `cpu` or `cu130`, which its own index provides; None without."""
    packages = environment.get("packages")
    torch = packages.get("torch") if isinstance(packages, Mapping) else None
    version = str(torch.get("version")) if isinstance(torch, Mapping) else ""
    return version.partition("+")[2] or None
