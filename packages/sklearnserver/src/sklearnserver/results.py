"""What an estimator's method gave, as named tensors with a dtype that a datatype carries."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kserve.signature import Tensors


def to_tensors(result: Any, name: str, stem: str) -> Tensors:
    """Name the tensors of a result.

    Args:
        result: An array, a sparse matrix, a DataFrame, or a list of arrays, one for each target.
        name: The name of a result that is one array.
        stem: What the names of one array for each target begin with.

    Returns:
        Under `name`; by column for a DataFrame; under `stem`-0, `stem`-1, ... for several targets.
    """
    if isinstance(result, np.ndarray):
        return {name: normalize(result)}
    if hasattr(result, "toarray"):
        return {name: normalize(result.toarray())}
    if hasattr(result, "columns"):
        return {str(column): normalize(result[column].to_numpy()) for column in result.columns}
    if isinstance(result, list) and result and isinstance(result[0], np.ndarray):
        return {f"{stem}-{index}": normalize(array) for index, array in enumerate(result)}
    return {name: normalize(np.asarray(result))}


def normalize(array: NDArray[Any]) -> NDArray[Any]:
    """Give an array a dtype that a datatype carries.

    Text stays text. Objects become numbers or booleans if all of them are such; otherwise
    everything becomes text: dates in ISO 8601, the rest as `str` has it.
    """
    kind = array.dtype.kind
    if kind in "biu" or (kind == "f" and array.dtype.itemsize <= 8):
        return array
    if kind == "f":
        return array.astype(np.float64)
    if kind == "M":
        return np.datetime_as_string(array).astype(np.object_)
    if kind in "SU":
        return array.astype(np.object_)
    return _normalize_objects(array.astype(np.object_))


def _normalize_objects(array: NDArray[Any]) -> NDArray[Any]:
    values = array.ravel().tolist()
    kinds = set(map(type, values))
    if kinds <= {str, bytes}:
        return array
    if not kinds & {str, bytes}:
        plain = _plain(values)
        if plain is not None:
            return plain.reshape(array.shape)
    texts = np.empty(len(values), dtype=np.object_)
    texts[:] = [_text(value) for value in values]
    return texts.reshape(array.shape)


def _plain(values: list[Any]) -> NDArray[Any] | None:
    """Give numbers or booleans the dtype that numpy finds for them; None for other things."""
    plain = np.array([np.nan if value is None else value for value in values])
    is_plain = plain.ndim == 1 and plain.dtype.kind in "biuf"
    return plain if is_plain else None


def _text(value: Any) -> str | bytes:
    if isinstance(value, str | bytes):
        return value
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)
