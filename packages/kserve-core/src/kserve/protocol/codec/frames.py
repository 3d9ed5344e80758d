"""Tables in the forms that pandas writes a DataFrame in, beside rows as objects.

KServe's SDK hands V1 bodies to `pandas.DataFrame`, one for each row, so its clients send these:

- `{"a": {"0": 1.5, "1": 2}}`: columns by name, their values by row label (`DataFrame.to_dict()`);
- `[{"a": {"0": 1.5}}, {"a": {"0": 2}}]`: several such tables, one below the other;
- `[[{"a": 1.5}, {"a": 2}]]`: lists of rows as objects (`DataFrame.to_dict("records")`).

The labels tell which values are of one row and are dropped: rows stay in their order.
"""

from itertools import chain
from typing import Any

from kserve.errors import InvalidInput


def as_records(rows: list[Any]) -> list[Any] | None:
    """Give rows as objects with one value for each column; None if the rows are no objects.

    Args:
        rows: At least one.

    Raises:
        InvalidInput: Row 0 holds a table and another one does not, or its columns have different
            labels.
    """
    if type(rows[0]) is list and rows[0] and type(rows[0][0]) is dict:
        for index, row in enumerate(rows):
            if type(row) is not list:
                raise InvalidInput(f"row {index} is no list of objects, row 0 is one")
        rows = list(chain.from_iterable(rows))
    if type(rows[0]) is not dict:
        return None
    if type(next(iter(rows[0].values()), None)) is not dict:
        return rows
    return list(chain.from_iterable(_rows_of(row, index) for index, row in enumerate(rows)))


def as_columns(columns: dict[str, Any]) -> dict[str, Any]:
    """Give columns by name as lists, whether their values come in lists or by row label.

    Raises:
        InvalidInput: Columns have different labels.
    """
    if type(next(iter(columns.values()), None)) is not dict:
        return columns
    _check_labels(columns, "the columns")
    labels = next(iter(columns.values()))
    return {name: [values[label] for label in labels] for name, values in columns.items()}


def _rows_of(table: Any, index: int) -> list[dict[str, Any]]:
    if type(table) is not dict:
        raise InvalidInput(f"row {index} is no object, row 0 is one")
    if not table:
        raise InvalidInput(f"row {index}: expected columns, got an empty object")
    _check_labels(table, f"the columns of row {index}")
    labels = next(iter(table.values()))
    return [{name: values[label] for name, values in table.items()} for label in labels]


def _check_labels(columns: dict[str, Any], owner: str) -> None:
    first, *_ = columns
    labels = columns[first].keys() if type(columns[first]) is dict else None
    for name, values in columns.items():
        if labels is None or type(values) is not dict or values.keys() != labels:
            raise InvalidInput(f"{owner}: expected the row labels of {first!r} in {name!r}, too")
