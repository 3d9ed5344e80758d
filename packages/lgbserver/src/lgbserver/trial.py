"""What `kserve.trial_load` runs: loads a model with the bare library, and looks at all of it."""

import ctypes
from typing import Any


def load(library: str, artifact: str) -> None:
    """Load a model.

    Args:
        library: LightGBM's shared library.
        artifact: A model in its text format.

    Raises:
        Exception: It cannot be loaded.
    """
    lightgbm = ctypes.CDLL(library)
    lightgbm.LGBM_GetLastError.restype = ctypes.c_char_p
    handle, n_iterations = ctypes.c_void_p(), ctypes.c_int()
    made = (ctypes.byref(n_iterations), ctypes.byref(handle))
    _call(lightgbm, "LGBM_BoosterCreateFromModelfile", artifact.encode(), *made)
    # Comes to every node: one that leads nowhere ends this process here, not the server later. The
    # text itself is too long for the buffer, and left out.
    length, buffer = ctypes.c_int64(), ctypes.create_string_buffer(1)
    dump = (0, -1, 0, ctypes.c_int64(1), ctypes.byref(length), buffer)
    _call(lightgbm, "LGBM_BoosterDumpModel", handle, *dump)


def _call(lightgbm: Any, function: str, *args: Any) -> None:
    if getattr(lightgbm, function)(*args):
        raise ValueError(lightgbm.LGBM_GetLastError().decode(errors="replace"))
