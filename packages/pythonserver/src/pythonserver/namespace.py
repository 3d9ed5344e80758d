"""Modules that belong to one model: files beside `model.py`, seen by that model alone.

The directory of a model is loaded as a package of a name that nothing else has. Its modules get
builtins of their own, whose `__import__` looks into the package first. So `import helpers` gives
each model its own `helpers`, on every thread and at any time, and a model that is loaded again has
new modules while the old ones still serve.

Pickles, and `importlib.import_module`, name modules as they were called where they were made:
`helpers`, `model` or `__main__`. For these there are shared modules that hold nothing: what is read
of one is read of the module of the model whose code asks, which its frames on the stack tell.
"""

import builtins
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import os
import re
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

# In the builtins of a model's modules: whose they are.
_KEY: Final = "__pythonserver_namespace__"

# The module that holds the model.
MAIN: Final = "model"

_counter = itertools.count(1)
_lock = threading.Lock()
# Packages to forget. Whoever changes `sys.modules` while the collector runs may do so in the middle
# of somebody's loop over it; and of Python's queues only this one may be used there.
_retired: "SimpleQueue[str]" = SimpleQueue()

# By the name of their package, oldest first.
_live: "dict[str, Namespace]" = {}


class Namespace:
    """The modules of one directory.

    Args:
        directory: The directory of `model.py`.
        name: The name of the model, for the name of the package.

    Attributes:
        directory: The same, absolute.
        package: The name of the package.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = Path(os.path.abspath(directory))
        words = re.sub(r"\W+", "_", name)
        self.package = f"_model_{next(_counter)}_{words}"
        self._owned: dict[str, bool] = {}
        self._builtins = {
            **vars(builtins),
            "__import__": self._import,
            "open": self._open,
            _KEY: self,
        }
        _install(self)

    def load(self) -> types.ModuleType:
        """Import `model.py`.

        Raises:
            BaseException: Whatever it raises.
        """
        return importlib.import_module(f"{self.package}.{MAIN}")

    def close(self) -> None:
        """Forget the modules; code that still runs keeps those that it has imported."""
        _forget(self.package)

    def retire(self) -> None:
        """Have a thread forget them soon: the collector may call this at any time."""
        _retired.put(self.package)

    def owns(self, name: str) -> bool:
        """Say whether a top-level name is that of a file or a folder here."""
        owned = self._owned.get(name)
        if owned is None:
            owned = self._owned[name] = self._has(name)
        return owned

    def has_used(self, name: str) -> bool:
        """Say whether a top-level name was looked up, and is one of a file or a folder here."""
        return self._owned.get(name, False)

    def module(self, name: str) -> types.ModuleType:
        """Import one of the modules, by the name that it has for the model's own code."""
        return importlib.import_module(f"{self.package}.{name}")

    def find_spec(
        self, fullname: str, path: Sequence[str]
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module of the package; the loader gives it the builtins."""
        for entry in path:
            finder = importlib.machinery.FileFinder(
                entry,
                (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
                (self._loader, importlib.machinery.SOURCE_SUFFIXES),  # type: ignore[arg-type]
            )
            spec = finder.find_spec(fullname)
            if spec is not None:
                return spec
        return None

    def give_builtins(self, module: types.ModuleType) -> None:
        """Let the code of a module that is about to run import from here first."""
        vars(module)["__builtins__"] = self._builtins

    def _loader(self, fullname: str, path: str) -> "_SourceLoader":
        return _SourceLoader(fullname, path, self)

    def _has(self, name: str) -> bool:
        spec = self.find_spec(f"{self.package}.{name}", [str(self.directory)])
        if spec is None:
            return False
        # A folder without an `__init__.py`, such as one of data, comes after everything else.
        return spec.loader is not None or _is_missing(name)

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        """Do the work of an import statement of the model's code."""
        top = name.partition(".")[0]
        # C code, such as pickle's, gives an empty list and then looks into `sys.modules`.
        is_from_c = isinstance(fromlist, list) and not fromlist
        if level == 0 and self.owns(top) and not is_from_c:
            if not fromlist:
                self.module(name)
                return sys.modules[f"{self.package}.{top}"]
            return builtins.__import__(f"{self.package}.{name}", globals, locals, fromlist, 0)
        if level == 0 and not is_from_c and isinstance(sys.modules.get(top), _SharedModule):
            del sys.modules[top]
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    def _open(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        """Open a file, one of the model's directory where the path is relative and it is there."""
        if isinstance(file, str | os.PathLike) and "r" in mode:
            beside = os.path.join(self.directory, file)
            if os.path.exists(beside):
                file = beside
        return open(file, mode, *args, **options)


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles each time: bytecode is told apart by the second, and its folder may be read-only."""

    def __init__(self, fullname: str, path: str, namespace: Namespace) -> None:
        super().__init__(fullname, path)
        self._namespace = namespace

    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        code: types.CodeType = self.source_to_code(self.get_data(path), path)
        return code

    def exec_module(self, module: types.ModuleType) -> None:
        self._namespace.give_builtins(module)
        super().exec_module(module)


class _ModelFinder:
    """Finds the modules of models; before Python's own finders, which know no builtins."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        namespace = _live.get(fullname.partition(".")[0])
        if namespace is None or path is None:
            return None
        return namespace.find_spec(fullname, path)


class _SharedFinder:
    """Finds what a pickle calls a module of a model's, where nothing else has the name."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        owner = _current(fullname.partition(".")[0])
        if owner is None or importlib.util.find_spec(f"{owner.package}.{fullname}") is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, _SharedLoader(), is_package=True)


class _SharedModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        return _attribute(self.__name__, self.__name__, name)


class _SharedLoader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _SharedModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: it holds nothing."""


def _attribute(shared: str, module: str, name: str) -> Any:
    owner = None if name.startswith("__") else _current(module.partition(".")[0])
    if owner is None:
        raise AttributeError(f"module {shared!r} has no attribute {name!r}")
    return getattr(owner.module(module), name)


def _main_attribute(name: str) -> Any:
    """Give what a script that was run as `__main__` calls its own: `model.py` has it now."""
    return _attribute("__main__", MAIN, name)


def _current(name: str) -> Namespace | None:
    """Give the namespace that a top-level name is looked up in: that of the code that asks.

    Where no code of a model is on the stack, as on a thread of a library's, it is the only model
    that has the name, or the newest load of it.
    """
    frame = sys._getframe()
    while frame is not None:
        namespace: Namespace | None = frame.f_builtins.get(_KEY)
        if namespace is not None:
            return namespace if namespace.owns(name) else None
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    owners = [namespace for namespace in list(_live.values()) if namespace.owns(name)]
    is_one_model = len({owner.directory for owner in owners}) == 1
    return owners[-1] if is_one_model else None


def _is_missing(name: str) -> bool:
    """Say whether nothing else of a name can be imported."""
    finders = [finder for finder in sys.meta_path if finder not in (_ModelFinder, _SharedFinder)]
    return all(finder.find_spec(name, None) is None for finder in finders)


def _install(namespace: Namespace) -> None:
    package = types.ModuleType(namespace.package)
    package.__path__ = [str(namespace.directory)]
    with _lock:
        _live[namespace.package] = namespace
        sys.modules[namespace.package] = package
        if _ModelFinder not in sys.meta_path:
            sys.meta_path.insert(0, _ModelFinder)
            sys.meta_path.append(_SharedFinder)
            threading.Thread(target=_forget_retired, name="pythonserver", daemon=True).start()
        # Started in the model's directory, its files would be everybody's.
        sys.path[:] = [entry for entry in sys.path if not _is_same(entry, namespace.directory)]
        vars(sys.modules["__main__"]).setdefault("__getattr__", _main_attribute)


def _is_same(entry: str, directory: Path) -> bool:
    return os.path.abspath(entry) == str(directory)


def _forget(package: str) -> None:
    with _lock:
        _live.pop(package, None)
        prefix = f"{package}."
        for name in list(sys.modules):
            if name == package or name.startswith(prefix) or _is_unused(name):
                sys.modules.pop(name, None)


def _forget_retired() -> None:
    while True:
        _forget(_retired.get())


def _is_unused(name: str) -> bool:
    """Say whether a shared module stands for the module of no model any more."""
    if not isinstance(sys.modules.get(name), _SharedModule):
        return False
    top = name.partition(".")[0]
    return not any(namespace.has_used(top) for namespace in list(_live.values()))
