"""Python values to numpy arrays of a datatype, and back.

Nothing is rounded or cut: a value that the datatype cannot hold is refused.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.codec.dtypes import NUMPY_DTYPES

_NUMBERS: Final = (int, float, np.integer, np.floating, np.bool_)
_CONTAINERS: Final = (list, tuple, dict, set, np.ndarray)


def array_from_values(values: Any, datatype: str) -> NDArray[Any]:
    """Make an array of `datatype` from nested or flat lists, or from another array.

    The shape is that of `values`. None becomes NaN in FP16, FP32 and FP64. An array that has the
    dtype already is returned as it is.

    Raises:
        InvalidInput: The datatype is unknown, the lists are ragged, or a value does not fit.
        InferenceError: Values of an array are masked, and it is none of floats.
    """
    dtype = NUMPY_DTYPES.get(datatype)
    if dtype is None:
        raise InvalidInput(f"unknown datatype {datatype!r}, expected {', '.join(NUMPY_DTYPES)}")
    array = plain_array(values) if isinstance(values, np.ndarray) else _objects(values)
    if array.dtype == dtype and isinstance(values, np.ndarray):
        return array
    if dtype.kind == "O":
        return _strings(array)
    if array.dtype.kind not in "biufO":
        raise InvalidInput(f"expected {datatype} data, got an array of {array.dtype}")
    return _numbers(array, datatype, dtype)


def plain_array(array: NDArray[Any]) -> NDArray[Any]:
    """Give an array as one of numpy's own class, masked floats as NaN.

    A `np.matrix` would keep its two axes whatever shape it is given, and what is masked is still
    in the buffer of a masked array. No copy is made without a masked value.

    Raises:
        InferenceError: Values are masked, and it is no array of floats.
    """
    if type(array) is np.ndarray:
        return array
    if not isinstance(array, np.ma.MaskedArray) or not np.ma.is_masked(array):
        return np.asarray(array)
    if array.dtype.kind != "f":
        raise InferenceError(
            f"expected masked values in arrays of floats alone, got them in one of {array.dtype}"
        )
    filled: NDArray[Any] = array.filled(np.nan)
    return filled


def list_from_array(array: NDArray[Any]) -> list[Any]:
    """Give the elements of `array` as a list nested like it; a scalar gives a list of one.

    Strings and bytes become `str`, unless one of them is not UTF-8: then all bytes stay `bytes`.
    """
    if array.ndim == 0:
        array = array.reshape(1)
    if array.dtype.kind not in "OSUM":
        return _as_list(array)
    try:
        texts = decode_texts(array)
    except UnicodeDecodeError:
        return _as_list(array)
    if array.ndim == 1:
        return texts
    nested = np.empty(len(texts), dtype=np.object_)
    nested[:] = texts
    return _as_list(nested.reshape(array.shape))


def decode_texts(array: NDArray[Any]) -> list[str]:
    """Give the elements of a BYTES array as a flat list of `str`, row-major.

    Raises:
        UnicodeDecodeError: An element is not UTF-8.
    """
    elements = _strings(array).ravel().tolist()
    if set(map(type, elements)) <= {str}:
        return _as_list(elements)
    return [
        bytes(element).decode() if isinstance(element, bytes | bytearray) else str(element)
        for element in elements
    ]


def _objects(values: Any) -> NDArray[np.object_]:
    # By way of objects: numpy would otherwise parse strings as numbers, cut 1.5 to 1, and, for a
    # mixture with one long string, reserve that string's length for each element.
    array = np.array(values, dtype=np.object_)
    if any(issubclass(kind, _CONTAINERS) for kind in _types(array)):
        raise InvalidInput("data is ragged: expected nested lists of equal length")
    return array


def _strings(array: NDArray[Any]) -> NDArray[np.object_]:
    if array.dtype.kind == "M":
        texts = np.asarray(np.datetime_as_string(array)).astype(np.object_)
        # Still known as missing, which JSON has a word for, and "NaT" as text.
        texts[np.isnat(array)] = np.datetime64("NaT")
        return texts
    return array.astype(np.object_, copy=False)


def _numbers(array: NDArray[Any], datatype: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    types = _types(array) if array.dtype.kind == "O" else set()
    allowed = (*_NUMBERS, type(None)) if dtype.kind == "f" else _NUMBERS
    for kind in types:
        if not issubclass(kind, allowed):
            raise InvalidInput(f"expected {datatype} data, got a value of type {kind.__name__}")
    is_integers = dtype.kind in "iu" and types == {int}
    if is_integers:
        _check_range(array, datatype, dtype)
    try:
        with np.errstate(over="raise", invalid="ignore"):
            cast = array.astype(dtype)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise InvalidInput(f"a value is out of range for {datatype}: {error}") from error
    if dtype.kind != "f" and not is_integers and not bool(np.all(cast == array)):
        raise InvalidInput(f"a value is not a whole number in the range of {datatype}")
    return cast


def _check_range(integers: NDArray[np.object_], datatype: str, dtype: np.dtype[Any]) -> None:
    # numpy 1 casts integers that are out of range to others, with a warning at most.
    limits = np.iinfo(dtype)
    for value in (integers.min(), integers.max()):
        if not limits.min <= value <= limits.max:
            raise InvalidInput(f"a value is out of range for {datatype}: {value}")


def _types(array: NDArray[Any]) -> set[type]:
    return set(map(type, array.ravel().tolist()))


def _as_list(values: Any) -> list[Any]:
    result: list[Any] = values if isinstance(values, list) else values.tolist()
    return result
