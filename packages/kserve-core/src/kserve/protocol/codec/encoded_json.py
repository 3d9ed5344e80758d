"""Values and arrays as JSON text."""

import math
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from kserve.errors import InferenceError

_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY


class EncodedJson(NamedTuple):
    """A JSON answer.

    Attributes:
        body: The text: UTF-8, no white space.
        n_nulled: How many NaN and infinities became null, as JSON has neither.
    """

    body: bytes
    n_nulled: int


def encode(value: Any) -> EncodedJson:
    """Write what user code returned: Python values with arrays and scalars of numpy anywhere.

    Floats narrower than 64 bits are widened first: a float32 6.8 is 6.800000190734863. Datetimes
    are ISO 8601, bytes are read as UTF-8, data frames become lists of row objects, keys of a dict
    that are no strings are written as strings.

    Raises:
        InferenceError: There is something in it that JSON cannot express.
    """
    writer = _Writer()
    try:
        # Without orjson's own numpy option, which would write a float32 as 6.8.
        body = orjson.dumps(value, default=writer.default, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError as error:
        raise InferenceError(
            f"the model's result cannot be written as JSON: {error.__cause__ or error}"
        ) from error
    if b"null" in body:
        writer.n_nulled += _count_not_finite(value)
    return EncodedJson(body, writer.n_nulled)


def writable(array: NDArray[Any]) -> tuple[Any, int]:
    """Give what `orjson.dumps` with its numpy option writes for `array`, and how many nulls of it.

    Numbers stay an array, of any shape, and the nulls are its NaN and infinities; anything else
    becomes nested lists.
    """
    kind = array.dtype.kind
    if kind == "f":
        array = array.astype(np.float64, order="C", copy=False)
        n_nulled = array.size - int(np.count_nonzero(np.isfinite(array)))
        return (array if array.ndim else array.item()), n_nulled
    if kind in "biu" and array.ndim:
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")), 0
    if kind == "M":
        # Python's datetimes end at microseconds; NaT becomes None.
        array = array.astype("datetime64[us]")
    values = array.tolist()
    return values, _count_not_finite(values) if kind == "O" else 0


class _Writer:
    """Turns what orjson does not know into what it knows, and counts lost numbers."""

    def __init__(self) -> None:
        self.n_nulled = 0

    def default(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            values, n_nulled = writable(value)
            self.n_nulled += n_nulled
            return orjson.Fragment(orjson.dumps(values, default=self.default, option=_NUMPY))
        if isinstance(value, np.generic):
            return self.default(np.asarray(value))
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value).decode()
        if hasattr(value, "columns") and hasattr(value, "to_dict"):
            return value.to_dict(orient="records")
        if hasattr(value, "__array__"):
            return np.asarray(value)
        raise TypeError(f"Type is not JSON serializable: {type(value).__name__}")


def _count_not_finite(value: Any) -> int:
    if type(value) is float:
        return not math.isfinite(value)
    if isinstance(value, dict):
        return sum(map(_count_not_finite, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_count_not_finite, value))
    return 0
