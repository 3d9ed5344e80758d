"""Tables of named columns: their inputs in a signature, and what a library takes of them."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kserve.errors import InvalidInput
from kserve.signature import TABLE_NAME, Tensors, TensorSpec

# A datatype of the protocol, and whether it is known: a guess is not enforced.
ColumnKind = tuple[str, bool]

# What a prediction begins with, before any feature counts.
_BIAS: Final = "bias"


def table_inputs(
    kinds: Sequence[ColumnKind], names: Sequence[str] | None
) -> tuple[TensorSpec, ...]:
    """Give one input for each named column, else one for the whole array.

    An array of columns that differ is given as a table too, with made-up names.

    Args:
        kinds: Of each column, in order.
        names: Of each column; None if the model knows none.
    """
    if names is None and len(set(kinds)) == 1:
        ((datatype, exact),) = set(kinds)
        return (TensorSpec(TABLE_NAME, datatype, (-1, len(kinds)), exact),)
    return tuple(
        TensorSpec(name, datatype, (-1,), exact)
        for name, (datatype, exact) in zip(column_names(names, len(kinds)), kinds, strict=True)
    )


def column_names(names: Sequence[str] | None, n_columns: int) -> tuple[str, ...]:
    """Give the names of columns; scikit-learn's x0, x1, ... if there are none."""
    return tuple(names or (f"x{index}" for index in range(n_columns)))


def as_matrix(tensors: Tensors) -> NDArray[Any]:
    """Give one tensor, or the columns of a table, as an array of shape (n_rows, n_columns)."""
    if len(tensors) == 1:
        (array,) = tensors.values()
        return array if array.ndim == 2 else array.reshape(-1, 1)
    return np.column_stack(list(tensors.values()))


def decode_texts(array: NDArray[Any], name: str, missing: float | None) -> NDArray[Any]:
    """Give the elements of a BYTES tensor as `str`, and `missing` for None.

    Args:
        array: Of `str`, `bytes` and None.
        name: The input's name.
        missing: What stands for a missing text.

    Raises:
        InvalidInput: An element is not UTF-8.
    """
    values = array.ravel().tolist()
    if set(map(type, values)) <= {str}:
        return array
    decoded = np.empty(len(values), dtype=np.object_)
    try:
        decoded[:] = [_text(value, missing) for value in values]
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"input {name!r}: expected UTF-8 text, got {exc}") from exc
    return decoded.reshape(array.shape)


def _text(value: Any, missing: float | None) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return missing if value is None else value


def by_feature(contributions: NDArray[Any], names: Sequence[str]) -> Tensors:
    """Name what each feature contributes to a prediction.

    Args:
        contributions: The last axis is the features, and then what the prediction begins with.
        names: Of the features.

    Returns:
        An array for each feature, and one that is called "bias", or "bias_" beside such a feature.
    """
    bias = _BIAS
    while bias in names:
        bias += "_"
    return {name: contributions[..., index] for index, name in enumerate([*names, bias])}
