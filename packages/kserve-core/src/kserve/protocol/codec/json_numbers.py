"""Lists that came from JSON, as arrays of a datatype.

A number is read as the datatype that the request names: 1.0 is an INT64, 1.5 is not, and a value
that the datatype cannot hold is refused. Strings never become numbers, nor do true and false; null
is NaN in a floating tensor. Types are looked at with `set(map(type, ...))`, which stays in C.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kserve.errors import InvalidInput
from kserve.protocol.codec.dtypes import NUMPY_DTYPES

# numpy 1 allows 32 axes, numpy 2 allows 64.
MAX_AXES: Final = 32

_ALLOWED: Final[dict[str, frozenset[type]]] = {
    "f": frozenset((int, float, type(None))),
    "i": frozenset((int, float)),
    "u": frozenset((int, float)),
    "b": frozenset((bool, int, float)),
    "O": frozenset((str,)),
}
# Bytes are not JSON's; a dialect may have put them in the place of what stands for them.
_TEXT_OR_NULL: Final = frozenset((str, bytes, type(None)))
_JSON_NAMES: Final[dict[type, str]] = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    bytes: "binary data",
    type(None): "null",
    dict: "an object",
}


def tensor_from_list(
    data: list[Any], datatype: str | None, owner: str, *, null_text: bool = False
) -> NDArray[Any]:
    """Make an array with the shape of a nested list.

    Args:
        data: Lists, nested to one depth and of equal lengths.
        datatype: The datatype that the values must fit; None takes the narrowest of BOOL, INT64,
            UINT64, FP64 and BYTES that holds them all.
        owner: What errors call the tensor, such as `input 'x'`.
        null_text: Whether null may stand in BYTES, as None; bytes may, too.

    Raises:
        InvalidInput: Ragged lists, or a value that does not fit; the message names its position.
    """
    values, shape = flatten(data, owner)
    return convert(values, shape, datatype, owner, null_text=null_text).reshape(shape)


def flatten(data: list[Any], owner: str) -> tuple[list[Any], tuple[int, ...]]:
    """Give the elements of a nested list in row-major order, and its shape.

    Raises:
        InvalidInput: The list is ragged or nested deeper than `MAX_AXES`.
    """
    shape = [len(data)]
    level = data
    while level and type(level[0]) is list:
        if set(map(type, level)) != {list} or len(set(map(len, level))) > 1:
            raise InvalidInput(f"{owner}: {_ragged(level, shape)}")
        shape.append(len(level[0]))
        level = list(chain.from_iterable(level))
        if len(shape) > MAX_AXES:
            raise InvalidInput(f"{owner}: lists are nested deeper than {MAX_AXES} levels")
    return level, tuple(shape)


def convert(
    values: Sequence[Any],
    shape: tuple[int, ...],
    datatype: str | None,
    owner: str,
    *,
    null_text: bool = False,
) -> NDArray[Any]:
    """Make a flat array of the elements that `flatten` gave; see `tensor_from_list`.

    Args:
        values: The elements, as many as `shape` holds.
        shape: Only to name positions in errors.
        datatype: As for `tensor_from_list`.
        owner: As for `tensor_from_list`.
        null_text: As for `tensor_from_list`.
    """
    types = set(map(type, values))
    if datatype is None:
        datatype = _natural_datatype(values, types, null_text)
    dtype = NUMPY_DTYPES[datatype]
    allowed = _TEXT_OR_NULL if null_text and dtype.kind == "O" else _ALLOWED[dtype.kind]
    if not types <= allowed:
        index = _first(values, lambda value: type(value) not in allowed)
        got = _JSON_NAMES.get(type(values[index]), "a list")
        raise InvalidInput(f"{owner}: {_at(index, shape)} is {got}, expected {datatype}")
    try:
        return _cast(values, types, dtype)
    except (OverflowError, ValueError) as error:
        index = _first(values, lambda value: not _fits(value, dtype))
        raise InvalidInput(
            f"{owner}: {_at(index, shape)} is {values[index]!r}, which is no {datatype}"
        ) from error


def narrow(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Cast float64 to a floating dtype, or int64 and uint64 to an integer dtype, if all fit.

    Raises:
        OverflowError: A value is out of the range of `dtype`.
    """
    if array.dtype == dtype:
        return array
    if not array.size:
        return array.astype(dtype)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            cast = array.astype(dtype)
        # The values are finite, or NaN that was null: JSON has no infinity.
        if np.count_nonzero(np.isinf(cast)):
            raise OverflowError(f"out of the range of {dtype}")
        return cast
    limits = np.iinfo(dtype)
    if array.min() < limits.min or array.max() > limits.max:
        raise OverflowError(f"out of the range of {dtype}")
    return array.astype(dtype)


def is_regrouping(nested: Iterable[int], shape: Iterable[int]) -> bool:
    """Tell whether `nested` is `shape` with neighbouring axes joined, or axes of 1 added.

    Row-major data of such a nesting can only mean one thing; [4, 2] for [2, 4] can mean two.
    """
    return set(accumulate(nested, operator.mul)) <= {1, *accumulate(shape, operator.mul)}


def _cast(values: Sequence[Any], types: set[type], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "O":
        return np.array(values, dtype=np.object_)
    if dtype.kind == "f":
        return narrow(np.array(values, dtype=np.float64), dtype)
    if dtype.kind == "b":
        if not set(values) <= {0, 1}:
            raise ValueError("neither 0 nor 1")
        return np.array(values, dtype=np.bool_)
    if float in types:
        # Not by way of a float array, in which integers above 2**53 would lose digits.
        if not np.all(np.mod(np.array(values, dtype=np.float64), 1) == 0):
            raise ValueError("not a whole number")
        values = list(map(int, values))
    return narrow(np.array(values, dtype=np.uint64 if dtype == np.uint64 else np.int64), dtype)


def _natural_datatype(values: Sequence[Any], types: set[type], null_text: bool) -> str:
    if types == {str} or (null_text and types & {str, bytes} and types <= _TEXT_OR_NULL):
        return "BYTES"
    if types == {bool}:
        return "BOOL"
    if types != {int}:
        # A mixture is refused when the array is made, by the position of what is unlike the first.
        return "BYTES" if values and type(values[0]) is str else "FP64"
    if max(values) < 2**63:
        return "INT64"
    return "UINT64" if min(values) >= 0 else "FP64"


def _fits(value: Any, dtype: np.dtype[Any]) -> bool:
    if value is None or dtype.kind == "b":
        return value is None or value in (0, 1)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return not np.isinf(dtype.type(value))
    return value == int(value) and np.iinfo(dtype).min <= int(value) <= np.iinfo(dtype).max


def _first(values: Sequence[Any], is_wrong: Callable[[Any], bool]) -> int:
    return next((index for index, value in enumerate(values) if is_wrong(value)), 0)


def _at(index: int, shape: tuple[int, ...]) -> str:
    return f"the value at {[int(axis) for axis in np.unravel_index(index, shape)]}"


def _ragged(level: list[Any], shape: list[int]) -> str:
    first = _extent(level[0])
    index = _first(level, lambda item: _extent(item) != first)
    name = "row" if len(shape) == 1 else "list"
    here, there = (_position(each, shape) for each in (index, 0))
    return f"{name} {here} {_extent(level[index])}, {name} {there} {first}"


def _extent(item: Any) -> str:
    if type(item) is not list:
        return "is no list"
    return f"has {len(item)} value{'' if len(item) == 1 else 's'}"


def _position(index: int, shape: list[int]) -> str:
    if len(shape) == 1:
        return str(index)
    return str([int(axis) for axis in np.unravel_index(index, shape)])
