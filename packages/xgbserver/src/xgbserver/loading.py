"""Load one artifact: what XGBoost writes, or a pickle of its scikit-learn classes if trusted."""

import threading
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import xgboost

from kserve.errors import ModelLoadError
from kserve.logging import logger
from kserve.pickles import TRUST_ADVICE
from kserve.trial_load import TrialLoad, find_library
from xgbserver.trial import plain

PICKLE_SUFFIXES: Final = (".joblib", ".pkl", ".pickle")
SUFFIXES: Final = (".bst", ".json", ".ubj", *PICKLE_SUFFIXES)

_ADVICE: Final = "the file is damaged, or holds no XGBoost model"

# What else is found under these names, by its first bytes.
_STRANGERS: Final = {
    b"tree\n": "a LightGBM model: serve it with lgbserver",
    b"______LightGBM_Binary_File_Token______": "a LightGBM Dataset, the data that models train on",
    b"\x01\xab\xff\xff": "a DMatrix, the data that models train on",
    b"\x80": "a pickle: name it .pkl, or save the model with Booster.save_model",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"PK\x03\x04": "a zip archive: unpack it",
}
# The format of XGBoost before 2.1 names its booster behind a header of 136 bytes.
_BINARY_BOOSTERS: Final = (b"gbtree", b"gblinear", b"dart")
_HEAD_BYTES: Final = 512
# 3.1 and newer no longer read it.
_LAST_BINARY_VERSION: Final = (3, 0)

# `warnings.catch_warnings` changes the whole process, so one load at a time.
_load_lock = threading.Lock()


def load_model(path: Path, *, nthread: int, allow_pickle: bool = False) -> Any:
    """Load the model that a file holds, after a trial in another process.

    Args:
        path: The file.
        nthread: Threads of a prediction.
        allow_pickle: Trust a pickle: whatever code it names is run.

    Returns:
        An `xgboost.Booster`, or an `xgboost.XGBModel` that was pickled.

    Raises:
        ModelLoadError: The file is missing, damaged, refused, or holds something else.
    """
    is_pickle = path.suffix.lower() in PICKLE_SUFFIXES
    if is_pickle and not allow_pickle:
        raise ModelLoadError(
            f"{path}: refused, because a pickle can run any code: {TRUST_ADVICE}, or save the model"
            " with save_model as .ubj or .json"
        )
    _check_head(path, is_pickle=is_pickle)
    library = find_library("xgboost", "libxgboost")
    script = Path(__file__).with_name("trial.py")
    with TrialLoad(script, library, path, is_bare=not is_pickle) as trial:
        trial.check(_ADVICE)
    with _load_lock, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return _load_pickle(path) if is_pickle else _load_booster(path, nthread)
        except Exception as exc:  # the boundary: what a damaged pickle raises has no end
            if isinstance(exc, ModelLoadError):
                raise
            raise ModelLoadError(f"{path}: cannot be loaded ({plain(exc)}): {_ADVICE}") from exc
        finally:
            for warning in caught:
                logger.warning("%s: %s", path.name, plain(warning.message))


def _check_head(path: Path, *, is_pickle: bool) -> None:
    """Refuse what is no model by its first bytes.

    Raises:
        ModelLoadError: It is something else, empty, or too old for the installed XGBoost.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as exc:
        raise ModelLoadError(f"{path}: cannot be read ({exc.strerror})") from exc
    if not head:
        raise ModelLoadError(f"{path}: the file is empty")
    if is_pickle or head.lstrip()[:1] == b"{":
        return
    for first_bytes, what in _STRANGERS.items():
        if head.startswith(first_bytes):
            raise ModelLoadError(f"{path}: expected an XGBoost model, found {what}")
    if not any(name in head for name in _BINARY_BOOSTERS):
        raise ModelLoadError(f"{path}: {_ADVICE}")
    _check_binary(path)


def _check_binary(path: Path) -> None:
    if path.suffix.lower() != ".bst":
        raise ModelLoadError(
            f"{path}: the binary format of XGBoost before 2.1: name the file .bst, or save the "
            "model again with XGBoost 3.0"
        )
    version = metadata.version(_distribution())
    if tuple(map(int, version.split(".")[:2])) > _LAST_BINARY_VERSION:
        raise ModelLoadError(
            f"{path}: the binary format of XGBoost before 2.1, which XGBoost {version} does not "
            "read: load it with XGBoost 3.0 and save it again as .ubj or .json"
        )


def _distribution() -> str:
    """Give the distribution of the module `xgboost`: that for CPUs has another name."""
    for name in ("xgboost-cpu", "xgboost"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return name
    raise ModelLoadError("neither xgboost-cpu nor xgboost is installed")


def _load_booster(path: Path, nthread: int) -> Any:
    return xgboost.Booster(params={"nthread": nthread}, model_file=str(path))


def _load_pickle(path: Path) -> Any:
    try:
        import joblib
    except ImportError as exc:
        raise ModelLoadError(
            f"{path}: reading it needs joblib: install xgbserver[sklearn]"
        ) from exc
    found = joblib.load(path)
    if not isinstance(found, xgboost.Booster | xgboost.XGBModel):
        name = f"{type(found).__module__}.{type(found).__qualname__}"
        raise ModelLoadError(
            f"{path}: expected a model of XGBoost, found an object of {name}; a pipeline of "
            "scikit-learn is served by sklearnserver"
        )
    return found
