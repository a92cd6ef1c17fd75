"""Names that a package exports and whose modules are imported by their first use (PEP 562)."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def exports(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of `package`, which lists its `__all__`.

    modules: where each name is defined; a name whose module is `package.name` is that module. Other modules of the
    package are attributes too, as they would be if anything had imported them.
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
