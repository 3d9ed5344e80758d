"""Load one scikit-learn artifact, safely unless told that its source is trusted."""

import bz2
import gzip
import importlib
import io
import logging
import lzma
import os
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from kserve.errors import ModelLoadError
from kserve.pickles import TRUST_ADVICE

SUFFIXES = (".joblib", ".pkl", ".pickle", ".skops")

_METHODS = ("predict", "transform", "fit_predict", "fit_transform", "score_samples", "fit")

_logger = logging.getLogger("kserve")
# `warnings.catch_warnings` changes the whole process, so one load at a time.
_load_lock = threading.Lock()

# An estimator's pickled state names the scikit-learn that wrote it: the key, its memo opcode, then
# the version as a short or a long text. In a .skops file both are JSON.
_VERSION = re.compile(
    rb"_sklearn_version(?:\x94|q.|r....)?(?:\x8c.|X....)(\d+(?:\.\d+)+(?:\.?(?:dev|rc|post)\d+)?)"
    rb'|_sklearn_version": \{.{0,200}?"content": "\\"(\d+\.\d+[\w.]*)',
    re.DOTALL,
)
_CHUNK_BYTES = 1 << 20
_OVERLAP_BYTES = 512


def load_estimator(path: str | os.PathLike[str], *, allow_pickle: bool = False) -> Any:
    """Load the estimator that a file holds.

    May be called on any thread; loads wait for each other.

    Args:
        path: A `.joblib`, `.pkl`, `.pickle` or `.skops` file. The first three may hold a pickle or
            joblib's format, compressed in any way that joblib writes.
        allow_pickle: Trust the file: whatever code it names is run.

    Returns:
        The object, which has at least one method that a server can call.

    Raises:
        ModelLoadError: The file is missing, damaged, refused, or holds something else.
    """
    path = Path(path)
    load = _load_skops if path.suffix == ".skops" else _load_pickle
    if path.suffix not in SUFFIXES:
        raise ModelLoadError(f"{path.name}: expected one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ModelLoadError(f"{path.name}: there is no such file in {path.parent}")
    with _load_lock, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = load(path, allow_pickle)
        except ModelLoadError:
            raise
        except Exception as error:  # the boundary: what a damaged file raises has no end
            raise ModelLoadError(_explain(path, error)) from error
    _log_warnings(path, caught)
    return _check_estimator(path, found)


def _load_pickle(path: Path, allow_pickle: bool) -> Any:
    if allow_pickle:
        import joblib

        return joblib.load(path)
    from sklearnserver.restricted_unpickler import RefusedPickleError, RestrictedUnpickler

    with _open(path) as stream:
        try:
            return RestrictedUnpickler(stream).load()
        except RefusedPickleError as error:
            raise ModelLoadError(
                f"{path.name}: refused, because {error}: {TRUST_ADVICE}, or save the model"
                f" as .skops with known types {_versions(path)}"
            ) from error


def _load_skops(path: Path, allow_pickle: bool) -> Any:
    try:
        import skops.io
    except ImportError as error:
        raise ModelLoadError(f"{path.name}: reading it needs the package skops") from error
    types = skops.io.get_untrusted_types(file=path)
    if not allow_pickle:
        from sklearnserver.restricted_unpickler import allowed_type_names

        refused = ", ".join(name for name in types if name not in allowed_type_names())
        if refused:
            raise ModelLoadError(
                f"{path.name}: refused, because these are not on the list of allowed types:"
                f" {refused}: {TRUST_ADVICE} {_versions(path)}"
            )
    return skops.io.load(path, trusted=types)


def _open_zlib(stream: Any) -> Any:
    from joblib.compressor import BinaryZlibFile

    return BinaryZlibFile(stream, "rb")


def _open_lz4(stream: Any) -> Any:
    try:
        frame = importlib.import_module("lz4.frame")
    except ImportError as error:
        raise ModelLoadError(
            f"{Path(stream.name).name}: reading it needs the package lz4"
        ) from error
    return frame.LZ4FrameFile(stream, "rb")


def _refuse_old_joblib(stream: Any) -> Any:
    name = Path(stream.name).name
    raise ModelLoadError(
        f"{name}: written by joblib 0.9 or older: save it again, or {TRUST_ADVICE}"
    )


# First bytes to opener, as joblib tells its compressed files apart. Source: joblib/compressor.py.
_OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZ": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\x00": lzma.open,
    b"\x04\x22\x4d\x18": _open_lz4,
    b"ZF": _refuse_old_joblib,
    b"x": _open_zlib,
}


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed."""
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        first = raw.peek(8)
        opener = next((_OPENERS[magic] for magic in _OPENERS if first.startswith(magic)), None)
        if opener is None:
            yield raw
        else:
            yield io.BufferedReader(stack.enter_context(opener(raw)), _CHUNK_BYTES)


def _explain(path: Path, error: Exception) -> str:
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    advice = "the file is damaged, or not what its suffix says"
    if isinstance(error, ImportError | AttributeError):
        advice = "it needs code that is not installed here; install the packages it was saved with"
    return f"{path.name}: cannot be loaded ({cause}): {advice} {_versions(path)}"


def _versions(path: Path) -> str:
    """Name the scikit-learn that wrote an artifact, if it can be read, and the installed one."""
    found = None
    with suppress(Exception):  # whatever is wrong with the file is being reported already
        found = _find_version(path)
    written = f"written with scikit-learn {found}" if found else "written with an unknown version"
    return f"({written}, installed is scikit-learn {metadata.version('scikit-learn')})"


def _find_version(path: Path) -> str | None:
    with ExitStack() as stack:
        if path.suffix == ".skops":
            archive = stack.enter_context(zipfile.ZipFile(path))
            stream = stack.enter_context(archive.open("schema.json"))
        else:
            stream = stack.enter_context(_open(path))
        tail = b""
        while chunk := stream.read(_CHUNK_BYTES):
            match = _VERSION.search(tail + chunk)
            if match:
                return (match[1] or match[2]).decode("ascii")
            tail = chunk[-_OVERLAP_BYTES:]
    return None


def _log_warnings(path: Path, caught: list[warnings.WarningMessage]) -> None:
    """Log one line about an artifact of another scikit-learn, and the rest for those who debug."""
    from sklearn.exceptions import InconsistentVersionWarning

    versions = {}
    for warning in caught:
        message = warning.message
        if isinstance(message, InconsistentVersionWarning):
            versions[message.original_sklearn_version] = message.current_sklearn_version
        else:
            _logger.debug("%s: %s: %s", path.name, warning.category.__name__, message)
    for written, installed in versions.items():
        _logger.warning(
            "%s was written with scikit-learn %s, and scikit-learn %s is installed: its answers may"
            " differ; save it again, or install the version it was written with",
            path.name,
            written,
            installed,
        )


def _check_estimator(path: Path, found: Any) -> Any:
    if isinstance(found, type) or not any(hasattr(found, method) for method in _METHODS):
        kind = found if isinstance(found, type) else type(found)
        name = f"{kind.__module__}.{kind.__qualname__}"
        what = "the class" if isinstance(found, type) else "an object of"
        raise ModelLoadError(f"{path.name}: expected a fitted estimator, found {what} {name}")
    return found
