"""Tensors to what an estimator takes: an array, a DataFrame, or a list of texts."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kserve.errors import InvalidInput
from kserve.signature import Tensors
from kserve.tables import as_matrix, column_names, decode_texts
from sklearnserver.columns import Column, Table

if TYPE_CHECKING:
    import pandas as pd

# tensors as the signature says -> what the estimator's methods take
MakeFeatures = Callable[[Tensors], Any]


def table_features(table: Table) -> MakeFeatures:
    """Give what turns tensors into the table that the estimator takes."""
    if table.needs_frame:
        return lambda tensors: _frame(tensors, table)
    if all(column.datatype == "FP64" and column.exact for column in table.columns):
        return as_matrix
    return lambda tensors: _objects(tensors, table)


def texts(tensors: Tensors) -> list[Any]:
    """Give the only tensor as the list that a vectorizer takes.

    Raises:
        InvalidInput: An element is null or not UTF-8.
    """
    ((name, array),) = tensors.items()
    documents: list[Any] = decode_texts(array, name, missing=None).tolist()
    if None in documents:
        # A vectorizer would complain of a NaN that nobody sent.
        raise InvalidInput(
            f"input {name!r}: expected text, got null at {documents.index(None)}, "
            "null is not allowed"
        )
    return documents


def records(tensors: Tensors) -> list[dict[str, Any]]:
    """Give columns as the list of rows that a DictVectorizer takes.

    Raises:
        InvalidInput: The tensors are not columns of equal length, or text is not UTF-8.
    """
    columns = _equal_columns(_decoded(tensors))
    lists = [column.tolist() for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def anything(tensors: Tensors) -> Any:
    """Give tensors that no signature describes: one as it is, several as a DataFrame.

    Raises:
        InvalidInput: Several tensors are not columns of equal length, or text is not UTF-8.
    """
    arrays = _decoded(tensors)
    if len(arrays) != 1:
        return _frame_of(_equal_columns(arrays))
    (array,) = arrays.values()
    return array.tolist() if array.dtype.kind == "O" and array.ndim == 1 else array


def _objects(tensors: Tensors, table: Table) -> NDArray[Any]:
    columns = _columns(tensors, table)
    if len({array.dtype for array in columns.values()}) == 1:
        return np.column_stack(list(columns.values()))
    return np.column_stack([array.astype(np.object_) for array in columns.values()])


def _frame(tensors: Tensors, table: Table) -> "pd.DataFrame":
    import pandas as pd

    if _is_matrix(tensors) and all(column.datatype == "FP64" for column in table.columns):
        (array,) = tensors.values()
        if array.dtype.kind != "O":
            return pd.DataFrame(array, columns=list(_names(table)), copy=False)
    return _frame_of(_columns(tensors, table))


def _frame_of(columns: Tensors) -> "pd.DataFrame":
    import pandas as pd

    # pandas 3 would guess a dtype of its own for text.
    return pd.DataFrame(
        {name: pd.Series(array, dtype=array.dtype, copy=False) for name, array in columns.items()},
        copy=False,
    )


def _names(table: Table) -> tuple[str, ...]:
    return column_names(table.names, len(table.columns))


def _is_matrix(tensors: Tensors) -> bool:
    return len(tensors) == 1 and next(iter(tensors.values())).ndim == 2


def _columns(tensors: Tensors, table: Table) -> Tensors:
    names = _names(table)
    arrays: Iterable[NDArray[Any]] = tensors.values()
    if _is_matrix(tensors):
        (matrix,) = tensors.values()
        arrays = (matrix[:, index] for index in range(matrix.shape[1]))
    return {
        name: _column(array, name, column)
        for name, array, column in zip(names, arrays, table.columns, strict=True)
    }


def _column(array: NDArray[Any], name: str, column: Column) -> NDArray[Any]:
    return decode_texts(array, name, column.missing) if array.dtype.kind == "O" else array


def _decoded(tensors: Tensors) -> Tensors:
    return {
        name: decode_texts(array, name, missing=np.nan) if array.dtype.kind == "O" else array
        for name, array in tensors.items()
    }


def _equal_columns(arrays: Tensors) -> Tensors:
    columns = {name: _one_column(array, name) for name, array in arrays.items()}
    if len({len(column) for column in columns.values()}) != 1:
        raise InvalidInput("expected inputs that are columns with equal numbers of rows")
    return columns


def _one_column(array: NDArray[Any], name: str) -> NDArray[Any]:
    if array.ndim > 2 or array.shape[1:] not in ((), (1,)):
        raise InvalidInput(
            f"input {name!r}: expected a column, shape [-1], got {list(array.shape)}"
        )
    return array.reshape(-1)
