"""What `kserve.trial_load` runs: loads a model with the bare library, and looks at all of it."""

import ctypes
import re
from typing import Any

# `[12:34:56] /workspace/src/common/json.cc:416: ` before the text of an error.
_PLACE = re.compile(r"^\[[\d:]+\] \S+?:\d+: ")

# Vector leaves in XGBoost 3; what else there is to look at, the load has seen.
NO_DUMP = "not yet implemented"


def plain(message: object) -> str:
    """Give a message of XGBoost's in one line, without the places in its sources."""
    text = str(message).partition("\nStack trace:")[0]
    return " ".join(_PLACE.sub("", text).split())


def load(library: str, artifact: str) -> None:
    """Load a model.

    Args:
        library: XGBoost's shared library.
        artifact: What it reads, or a pickle.

    Raises:
        Exception: It cannot be loaded.
    """
    if artifact.lower().endswith((".joblib", ".pkl", ".pickle")):
        import joblib

        joblib.load(artifact)
        return
    xgboost = ctypes.CDLL(library)
    xgboost.XGBGetLastError.restype = ctypes.c_char_p
    handle = ctypes.c_void_p()
    _call(xgboost, "XGBoosterCreate", None, ctypes.c_uint64(0), ctypes.byref(handle))
    _call(xgboost, "XGBoosterLoadModel", handle, artifact.encode())
    # Comes to every node: one that leads nowhere ends this process here, not the server later.
    n_trees, trees = ctypes.c_uint64(), ctypes.POINTER(ctypes.c_char_p)()
    outcome = (ctypes.byref(n_trees), ctypes.byref(trees))
    try:
        _call(xgboost, "XGBoosterDumpModelEx", handle, b"", 0, b"text", *outcome)
    except ValueError as exc:
        if NO_DUMP not in str(exc):
            raise


def _call(xgboost: Any, function: str, *args: Any) -> None:
    if getattr(xgboost, function)(*args):
        raise ValueError(plain(xgboost.XGBGetLastError().decode(errors="replace")))
