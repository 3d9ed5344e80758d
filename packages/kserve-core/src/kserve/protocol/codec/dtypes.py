"""The datatypes of the Open Inference Protocol and their numpy dtypes.

Source: Open Inference Protocol v2, "Tensor Data Types",
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from typing import Any, Final

import numpy as np

# BYTES elements are Python objects: `str` when they came from JSON, `bytes` from any binary form.
NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}

_DATATYPES: Final[dict[np.dtype[Any], str]] = {dtype: name for name, dtype in NUMPY_DTYPES.items()}


def to_np_dtype(datatype: str) -> np.dtype[Any] | None:
    """Give the numpy dtype of a datatype, or None for an unknown one."""
    return NUMPY_DTYPES.get(datatype)


def from_np_dtype(dtype: Any) -> str | None:
    """Give the datatype of a numpy dtype, or None where it has none.

    Strings, bytes and datetimes travel as BYTES.
    """
    datatype = _DATATYPES.get(dtype)
    if datatype is not None:
        return datatype
    dtype = np.dtype(dtype)
    if dtype.kind in "OSUM":
        return "BYTES"
    return _DATATYPES.get(dtype.newbyteorder("="))
