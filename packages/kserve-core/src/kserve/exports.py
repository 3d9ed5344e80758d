"""Names that a package imports when they are first used."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy_exports(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Give the `__getattr__` of a package that imports nothing until it is asked for a name.

    Importing a package then loads no library, and what these read when they are loaded, like the
    number of their threads, can still be set. Submodules are attributes too, as they are of a
    package that has imported them.

    Args:
        package: The name of the package.
        homes: The names that it exports, by the module that defines them.
    """
    modules = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in modules:
            value = getattr(import_module(modules[name]), name)
        elif not name.startswith("_") and find_spec(f"{package}.{name}") is not None:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    return get


def lazy_dir(package: str) -> Callable[[], list[str]]:
    """Give the `__dir__` of such a package: also the names that have not been used yet.

    Args:
        package: The name of the package; its `__all__` names what it exports.
    """

    def names() -> list[str]:
        module = sys.modules[package]
        return sorted({*vars(module), *module.__all__})

    return names
