"""A reader of pickle and joblib streams that uses nothing outside a committed list of globals.

A pickle is a program, and the globals that it may name decide what it can do. Here each is an exact
(module, name) pair of `allowed_globals.txt`, checked before anything is imported; the list also
says how a pair may be used: only referred to, instantiated (NEWOBJ) or called (REDUCE). Any
`numpy.ufunc` and `functools.partial` come in by rule. The opcodes that reach code without naming a
global are closed as well: only a listed global itself is called, never an object made from one;
state is set by the class, never by an attribute planted on the instance, and never on a global;
extension codes are refused; numpy dtypes and arrays cannot be changed once they are in use.

This is a gate for code, not for sense. A hostile file can still describe a model that answers
wrongly, that calls the listed functions when it predicts, or whose indices lead compiled
scikit-learn code out of bounds. Source: Python library reference, `pickle`, "Restricting Globals";
CPython `Lib/pickle.py` for what each opcode calls; `joblib/numpy_pickle.py` for where arrays are.
"""

import _compat_pickle
import functools
import importlib
import math
import pickle
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping
from importlib import resources
from types import FunctionType
from typing import IO, Any, ClassVar, NamedTuple, NoReturn

import numpy as np

GlobalName = tuple[str, str]

# The one whose opcodes can be extended; its stubs have none of them.
_PythonUnpickler: Any = pickle._Unpickler

_LIST_FILE = "allowed_globals.txt"
# A ufunc is pickled under whichever module had it first, so one ufunc has many spellings.
_UFUNC_HOMES = ("numpy", "scipy.special")

# Up to scikit-learn 1.8 this extension module takes itself for a top-level one; nobody else shall
# be able to put one there.
_ALIASES = {"_loss": "sklearn._loss._loss"}

_SPECIAL_NAME = re.compile(r"__\w+__")
# Attributes of scorers and selectors: names of methods and attributes that they look up elsewhere.
_METHOD_NAMES = {"_response_method", "importance_getter"}


class RefusedPickleError(pickle.UnpicklingError):
    """The stream asks for something that is not allowed; the text says for what."""


class AllowedUse(NamedTuple):
    """How a listed global may be used, beyond being referred to."""

    new: bool = False
    call: bool = False


@functools.cache
def allowed_globals() -> Mapping[GlobalName, AllowedUse]:
    """Read the packaged list: one `module name [new] [call]` per line, `#` starts a comment."""
    text = resources.files(__package__).joinpath(_LIST_FILE).read_text(encoding="utf-8")
    lines = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return {
        (module, name): AllowedUse("new" in uses, "call" in uses) for module, name, *uses in lines
    }


@functools.cache
def allowed_type_names() -> frozenset[str]:
    """Give the listed classes and functions as skops names types, without what is unsafe there.

    skops does not check state, so distributions (they execute theirs) are left out, and it calls
    what it trusts, so are the functions that only a pickle needs.
    """
    names = {
        f"{module}.{name}"
        for (module, name), use in allowed_globals().items()
        if not module.startswith("scipy.stats.") and (not use.call or name[0].isupper())
    }
    return frozenset(names | {"functools.partial"})


def find_ufunc(module: str, name: str) -> np.ufunc | None:
    """Look a ufunc up in the public namespaces of numpy and scipy, importing nothing else."""
    home = next((h for h in _UFUNC_HOMES if module == h or module.startswith(f"{h}.")), None)
    if home is None:
        return None
    found = vars(importlib.import_module(home)).get(name)
    return found if isinstance(found, np.ufunc) else None


class RestrictedUnpickler(_PythonUnpickler):  # type: ignore[misc]  # see above
    """Reads one object from a pickle or joblib stream.

    Nothing but `load()` is meant to be called.

    Args:
        file_handle: The stream, decompressed. It is left where the pickle ends.
        allowed: The globals that may be used; the packaged list unless given.
    """

    # One function per opcode, as in the class of CPython that this one extends.
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_PythonUnpickler.dispatch)

    def __init__(
        self, file_handle: IO[bytes], allowed: Mapping[GlobalName, AllowedUse] | None = None
    ) -> None:
        super().__init__(file_handle)
        self.file_handle = file_handle
        self.allowed = allowed_globals() if allowed is None else allowed
        # Keyed by identity: what a stream may call is exactly an object that `find_class` gave it.
        self._globals: dict[int, tuple[GlobalName, AllowedUse, object]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return a listed global.

        Raises:
            RefusedPickleError: It is not listed; nothing was imported.
            ImportError, AttributeError: It is listed and the installed versions do not have it.
        """
        if self.proto < 3:
            module, name = _python3_name(module, name)
        ufunc = find_ufunc(module, name)
        if ufunc is not None:
            return self._remember((module, name), AllowedUse(), ufunc)
        replacement = _REPLACEMENTS.get((module, name))
        if replacement is not None:
            return self._remember((module, name), *replacement)
        use = self.allowed.get((module, name))
        if use is None:
            raise RefusedPickleError(f"{module}.{name} is not on the list of allowed globals")
        found: Any = importlib.import_module(_ALIASES.get(module, module))
        for part in name.split("."):
            found = getattr(found, part)
        return self._remember((module, name), use, found)

    def _remember(self, name: GlobalName, use: AllowedUse, found: Any) -> Any:
        self._globals[id(found)] = (name, use, found)
        return found

    def get_extension(self, code: int) -> NoReturn:
        """Refuse every extension code: a cached one would never pass `find_class`."""
        raise RefusedPickleError(f"extension code {code} (copyreg) is not allowed")

    def _check_use(self, found: object, verb: str) -> None:
        name, use, _ = self._globals.get(id(found), (None, AllowedUse(), None))
        if name is None:
            raise RefusedPickleError(f"an object of {type(found)} may not be used to {verb}")
        if not getattr(use, verb):
            raise RefusedPickleError(f"{'.'.join(name)} may be referred to, but not used to {verb}")

    def load_reduce(self) -> None:
        """Call a listed callable."""
        self._check_use(self.stack[-2], "call")
        super().load_reduce()

    dispatch[pickle.REDUCE[0]] = load_reduce

    def _instantiate(self, klass: object, args: list[Any]) -> None:
        self._check_use(klass, "call")
        super()._instantiate(klass, args)

    def load_newobj(self) -> None:
        """Make an instance of a listed class, without its `__init__`."""
        self._check_use(self.stack[-2], "new")
        super().load_newobj()

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_newobj_ex(self) -> None:
        """Make an instance of a listed class, with keyword arguments."""
        self._check_use(self.stack[-3], "new")
        super().load_newobj_ex()

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def load_build(self) -> None:
        """Set the state of an instance; replace the draft of a dtype or an array by it."""
        instance, state = self.stack[-2:]
        if isinstance(instance, _DtypeDraft):
            self._finish_dtype(instance, state)
        elif isinstance(instance, _ArrayDraft):
            self.stack[-2:] = [instance.read(state, self)]
        else:
            self._set_state(instance, state)
            del self.stack[-1]

    dispatch[pickle.BUILD[0]] = load_build

    def _set_state(self, instance: object, state: Any) -> None:
        if id(instance) in self._globals:
            raise RefusedPickleError(f"the state of {instance!r}, a global, may not be changed")
        if isinstance(instance, np.ndarray) and instance.size:
            raise RefusedPickleError("the state of an array with data may not be changed")
        # Not `instance.__setstate__`: that could be an attribute which the stream has planted.
        set_state = getattr(type(instance), "__setstate__", None)
        _check_state(type(instance), set_state, state)
        if set_state is not None:
            set_state(instance, state)
        else:
            instance.__dict__.update((sys.intern(key), value) for key, value in state.items())

    def _finish_dtype(self, draft: "_DtypeDraft", state: Any) -> None:
        dtype = draft.finish(state)
        self.stack[-2:] = [dtype]
        self.memo.update({key: dtype for key, value in self.memo.items() if value is draft})

    def load_append(self) -> None:
        """Append an item to a list."""
        _check_list(self.stack[-2])
        super().load_append()

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self) -> None:
        """Append items to a list."""
        _check_list(self.metastack[-1][-1])
        super().load_appends()

    dispatch[pickle.APPENDS[0]] = load_appends

    def load_setitem(self) -> None:
        """Set an item of a dict."""
        _check_dict(self.stack[-3])
        super().load_setitem()

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        """Set items of a dict."""
        _check_dict(self.metastack[-1][-1])
        super().load_setitems()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_additems(self) -> None:
        """Add items to a set."""
        container = self.metastack[-1][-1]
        if type(container) is not set:
            raise RefusedPickleError(f"items may not be added to an object of {type(container)}")
        super().load_additems()

    dispatch[pickle.ADDITEMS[0]] = load_additems


def _check_list(container: object) -> None:
    """Lists are of exact types: a subclass could carry a planted `extend`."""
    if type(container) not in (list, deque):
        raise RefusedPickleError(f"items may not be appended to an object of {type(container)}")


def _check_dict(container: object) -> None:
    """Subclasses are fine here: items are set by the type, past what an instance carries."""
    if not isinstance(container, dict):
        raise RefusedPickleError(f"items may not be set in an object of {type(container)}")


def _python3_name(module: str, name: str) -> GlobalName:
    """Protocols below 3 write the names of Python 2."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        return _compat_pickle.NAME_MAPPING[module, name]
    return _compat_pickle.IMPORT_MAPPING.get(module, module), name


def _check_state(owner: type, set_state: Any, state: Any) -> None:
    """Refuse a state whose attributes could turn into code."""
    # Python code that sets a state makes attributes of anything dict-like; compiled code knows
    # what its tuples hold, and so does the class of masked arrays.
    is_python = set_state is None or isinstance(set_state, FunctionType)
    if is_python and type(state) is not dict and not issubclass(owner, np.ma.MaskedArray):
        raise RefusedPickleError(f"the state of {owner} is of {type(state)}, not a dict")
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, dict):
            _check_attributes(owner, part)


def _check_attributes(owner: type, attributes: dict[Any, Any]) -> None:
    """Refuse special names, names of special methods to call, and source.

    `newObj` of scikit-learn's Cython classes calls `__new__` of an instance, scorers call the
    method that they name, and a distribution of scipy executes its `_parse_arg_template` when its
    state is set.
    """
    # Of the exact type, because a subclass could carry a planted `get`.
    if type(attributes) is not dict:
        raise RefusedPickleError(f"the attributes of {owner} are of {type(attributes)}, not a dict")
    for key in attributes:
        # Distributions carry their documentation.
        if type(key) is not str or (_SPECIAL_NAME.search(key) and key != "__doc__"):
            raise RefusedPickleError(f"{key!r} may not be set as an attribute of {owner}")
    for key in _METHOD_NAMES & attributes.keys():
        if _SPECIAL_NAME.search(str(attributes[key])):
            raise RefusedPickleError(f"{attributes[key]!r} may not be the {key} of {owner}")
    template = attributes.get("_parse_arg_template")
    if template is not None and template != owner()._parse_arg_template:
        raise RefusedPickleError(f"{owner} comes with source code that is not its own")


class _ArrayClass:
    """Stands for `numpy.ndarray`, which as a callable would make objects of any bytes."""


def _reconstruct_array(subtype: Any, *_shape_and_dtype: Any) -> np.ndarray[Any, Any]:
    """Make the empty array that numpy's function makes: its state brings shape and dtype."""
    if subtype is not _ArrayClass:
        raise RefusedPickleError(f"{subtype!r} is no class of arrays")
    return np.ndarray((0,), np.int8)


def _reconstruct_masked(subtype: Any, baseclass: Any, shape: Any, dtype: Any) -> Any:
    """Call numpy's function, which calls `__new__` of whatever it is given, with classes alone."""
    if subtype is not np.ma.MaskedArray or baseclass is not _ArrayClass:
        raise RefusedPickleError(f"{subtype!r} of {baseclass!r} is no class of masked arrays")
    return np.ma.core._mareconstruct(subtype, np.ndarray, shape, dtype)  # type: ignore[attr-defined]


def _random_constructor(name: str) -> Callable[..., Any]:
    """Wrap a constructor of `numpy.random._pickle` without the argument that it would call."""

    def construct(source: Any = "MT19937", *_constructor: Any) -> Any:
        bit_generator = np.random.BitGenerator
        is_class = isinstance(source, type) and issubclass(source, bit_generator)
        if not is_class and not isinstance(source, str | bit_generator):
            raise RefusedPickleError(f"{source!r} is no bit generator")
        return getattr(importlib.import_module("numpy.random._pickle"), name)(source)

    return construct


class _ArrayDraft:
    """joblib's place-holder for an array whose data follow in the stream."""

    def read(self, state: dict[str, Any], unpickler: RestrictedUnpickler) -> Any:
        """Read the data; those of an object array are a pickle of their own, restricted too."""
        dtype, shape = state["dtype"], state["shape"]
        if not isinstance(dtype, np.dtype):
            raise RefusedPickleError(f"an array has an object of {type(dtype)} as its dtype")
        if dtype.hasobject:
            return RestrictedUnpickler(unpickler.file_handle, unpickler.allowed).load()
        # Only joblib 1.1 and newer write this key, and pad the data: one byte says how much.
        if state.get("numpy_array_alignment_bytes") is not None:
            _read_exactly(unpickler.file_handle, _read_exactly(unpickler.file_handle, 1)[0])
        data = _read_exactly(unpickler.file_handle, dtype.itemsize * math.prod(shape))
        array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, data, order=state["order"])
        return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _read_exactly(stream: IO[bytes], n_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    data = np.empty(n_bytes, np.uint8)
    n_read = stream.readinto(data)  # type: ignore[attr-defined]  # both files and buffers have it
    if n_read != n_bytes:
        raise EOFError(f"an array of {n_bytes} bytes ends after {n_read}")
    return data


class _DtypeDraft:
    """A numpy dtype that has no state yet.

    `numpy.dtype.__setstate__` believes any flags, sizes and offsets. With them bytes can be made to
    pass for object pointers, so no dtype leaves here before its state has been compared with what
    numpy itself would have made, and none can be changed afterwards.
    """

    def __init__(self, spec: str, *_align_and_copy: bool) -> None:
        self.spec = str(spec)

    def finish(self, state: Any) -> np.dtype[Any]:
        dtype: Any = np.dtype(self.spec, False, True)  # a copy: others are shared by all arrays
        dtype.__setstate__(state)
        expected = _same_dtype(dtype)
        facts = ("flags", "itemsize", "alignment")
        if dtype != expected or any(getattr(dtype, f) != getattr(expected, f) for f in facts):
            raise RefusedPickleError(f"the state of dtype {self.spec!r} contradicts itself")
        return dtype  # type: ignore[no-any-return]  # the stubs have no __setstate__


def _same_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.subdtype is not None:
        return np.dtype(dtype.subdtype)
    if dtype.names is None or dtype.fields is None:
        return np.dtype(dtype.str)
    fields = [dtype.fields[name] for name in dtype.names]
    description = {
        "names": list(dtype.names),
        "formats": [field[0] for field in fields],
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
    }
    return np.dtype(description, align=dtype.isalignedstruct)  # type: ignore[call-overload,no-any-return]  # no overload takes a plain dict


_REPLACEMENTS: Mapping[GlobalName, tuple[AllowedUse, object]] = {
    ("functools", "partial"): (AllowedUse(call=True), functools.partial),
    ("numpy.ma.core", "_mareconstruct"): (AllowedUse(call=True), _reconstruct_masked),
    **{
        ("numpy.random._pickle", name): (AllowedUse(call=True), _random_constructor(name))
        for name in ("__bit_generator_ctor", "__generator_ctor", "__randomstate_ctor")
    },
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): (AllowedUse(new=True), _ArrayDraft),
    ("numpy", "dtype"): (AllowedUse(call=True), _DtypeDraft),
    ("numpy", "ndarray"): (AllowedUse(), _ArrayClass),
    ("numpy.core.multiarray", "_reconstruct"): (AllowedUse(call=True), _reconstruct_array),
    ("numpy._core.multiarray", "_reconstruct"): (AllowedUse(call=True), _reconstruct_array),
}
