"""Names that a package exports and whose modules are imported when they are first used (PEP 562)."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def exports(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes the module-level functions `__getattr__` and `__dir__` of a package.

    Args:
        package: its full name. Its other modules are attributes too, as they are once anything has imported them.
        modules: full name of the module that defines each exported name; `package.name` itself for a module.

    Returns:
        `__getattr__`, which imports, and `__dir__`, which lists `__all__`.
    """
    namespace = vars(sys.modules[package])

    def get(name: str) -> Any:
        own = f"{package}.{name}"
        source = modules.get(name)
        if source is None:
            if name.startswith("_") or find_spec(own) is None:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            source = own
        module = import_module(source)
        value = namespace[name] = module if source == own else getattr(module, name)
        return value

    def names() -> list[str]:
        return sorted({*namespace["__all__"], *(name for name in namespace if name.startswith("__"))})

    return get, names
