"""Values and arrays as JSON text."""

import datetime
import math
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from kserve.errors import InferenceError
from kserve.protocol.codec.arrays import plain_array

# What pandas calls its missing values; it need not be installed to meet them.
_MISSING: Final = frozenset({"NaTType", "NAType"})


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
    are ISO 8601, bytes are read as UTF-8, tuples of any kind are lists, data frames become lists of
    row objects, keys of a dict that are no strings are written as strings. What numpy and pandas
    know as missing is null.

    Raises:
        InferenceError: There is something in it that JSON cannot express.
    """
    writer = Writer()
    try:
        body = writer.dumps(value)
    except orjson.JSONEncodeError as error:
        raise InferenceError(
            f"the model's result cannot be written as JSON: {reason(error)}"
        ) from error
    if b"null" in body:
        writer.n_nulled += _count_not_finite(value)
    return EncodedJson(body, writer.n_nulled)


def writable(array: NDArray[Any]) -> tuple[Any, int]:
    """Give what `Writer.dumps` writes for `array`, and how many nulls of it stand for numbers.

    Numbers stay an array, of any shape, and the nulls are its NaN and infinities; anything else
    becomes nested lists.

    Raises:
        InferenceError: Values are masked, and it is no array of floats.
    """
    array = plain_array(array)
    kind = array.dtype.kind
    if kind == "f":
        if array.dtype != np.float64 or not array.flags.c_contiguous:
            array = array.astype(np.float64, order="C", copy=False)
        n_nulled = array.size - int(np.count_nonzero(np.isfinite(array)))
        return (array if array.ndim else array.item()), n_nulled
    if kind in "biu" and array.ndim:
        if array.flags.c_contiguous and array.dtype.isnative:
            return array, 0
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")), 0
    values = _datetimes(array) if kind == "M" else array.tolist()
    return values, _count_not_finite(values) if kind == "O" else 0


def reason(error: BaseException) -> BaseException:
    """Give the first of the errors that led to one of orjson, which names the type alone."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class Writer:
    """Writes what orjson does not know as what it knows.

    Attributes:
        n_nulled: How many numbers of arrays became null.
    """

    def __init__(self) -> None:
        self.n_nulled = 0

    def dumps(self, value: Any) -> bytes:
        """Write Python values, arrays and scalars.

        Raises:
            orjson.JSONEncodeError: There is something that JSON cannot express.
        """
        n_nulled = self.n_nulled
        try:
            # Without orjson's own numpy option, which would write a float32 as 6.8.
            return orjson.dumps(value, default=self._default, option=orjson.OPT_NON_STR_KEYS)
        except orjson.JSONEncodeError as error:
            # The one thing that `default` is not asked about.
            if not str(error).startswith("Dict key"):
                raise
        self.n_nulled = n_nulled
        value = _with_plain_keys(value)
        return orjson.dumps(value, default=self._default, option=orjson.OPT_NON_STR_KEYS)

    def _default(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, np.generic):
            return self._array(np.asarray(value))
        if type(value).__name__ in _MISSING:
            return None
        if isinstance(value, datetime.date | datetime.time):
            return value.isoformat()
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value).decode()
        if isinstance(value, tuple):
            return list(value)
        return self._foreign(value)

    def _array(self, array: NDArray[Any]) -> orjson.Fragment:
        values, n_nulled = writable(array)
        self.n_nulled += n_nulled
        if isinstance(values, np.ndarray):
            return orjson.Fragment(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY))
        return orjson.Fragment(self.dumps(values))

    def _foreign(self, value: Any) -> Any:
        if hasattr(value, "columns") and hasattr(value, "to_dict"):
            rows = value.to_dict(orient="records")
            self.n_nulled += _count_not_finite(rows)
            return rows
        if hasattr(value, "__array__"):
            return np.asarray(value)
        raise TypeError(f"Type is not JSON serializable: {type(value).__name__}")


def _datetimes(array: NDArray[Any]) -> Any:
    is_missing = np.isnat(array)
    years = array.astype("datetime64[Y]").astype(np.int64)[~is_missing] + 1970
    if np.all((years >= datetime.MINYEAR) & (years <= datetime.MAXYEAR)):
        # Python's datetimes end at microseconds; NaT becomes None.
        return array.astype("datetime64[us]").tolist()
    texts = np.asarray(np.datetime_as_string(array)).astype(np.object_)
    texts[is_missing] = None
    return texts.tolist()


def _with_plain_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain_key(key): _with_plain_keys(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_plain_keys(each) for each in value]
    return value


def _plain_key(key: Any) -> Any:
    if isinstance(key, np.datetime64):
        return str(key)
    if isinstance(key, np.generic):
        return key.item()
    return key.isoformat() if isinstance(key, datetime.date) else key


def _count_not_finite(value: Any) -> int:
    if type(value) is float:
        return not math.isfinite(value)
    if isinstance(value, dict):
        return sum(map(_count_not_finite, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_count_not_finite, value))
    return 0
