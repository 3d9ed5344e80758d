"""What a fitted estimator takes: its columns, and whether it picks them by name."""

from collections import UserList
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sklearnserver.parts import makes_frames

# Where wrappers keep the fitted estimator that sees the same columns as they do.
_INNER_ATTRIBUTES: Final = ("best_estimator_", "estimator_", "regressor_", "estimators_")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of an estimator's table.

    Attributes:
        datatype: One of the protocol's datatypes.
        exact: False where the estimator does not tell the datatype.
        missing: What stands for a missing text: None, or NaN.
        example: A value that the estimator can take.
    """

    datatype: str
    exact: bool = True
    missing: float | None = np.nan
    example: Any = 0.0


NUMBER: Final = Column("FP64")
TEXT: Final = Column("BYTES", example="")
UNKNOWN: Final = Column("FP64", exact=False)


@dataclass(frozen=True, slots=True)
class Table:
    """The columns that an estimator takes.

    Attributes:
        columns: In order.
        names: Their names; None if it was fitted without.
        needs_frame: It takes a DataFrame: it picks columns by name, or their datatypes differ.
    """

    columns: tuple[Column, ...]
    names: tuple[str, ...] | None
    needs_frame: bool


def takes_texts(estimator: Any) -> bool:
    """Tell whether an estimator takes a plain list of texts, as vectorizers do."""
    from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer

    first = _first_step(estimator)
    if isinstance(first, CountVectorizer | HashingVectorizer):
        return True
    if _n_features(first) is not None:
        return False
    return any(takes_texts(inner) for inner in _same_input(first))


def takes_records(estimator: Any) -> bool:
    """Tell whether an estimator takes a list of dicts, one for each row."""
    from sklearn.feature_extraction import DictVectorizer

    return isinstance(_first_step(estimator), DictVectorizer)


def table_of(estimator: Any) -> Table | None:
    """Describe the columns that an estimator takes; None if it does not tell how many."""
    first = _first_step(estimator)
    n_columns = _n_features(estimator) or _n_features(first)
    if n_columns is None:
        return None
    names = getattr(first, "feature_names_in_", getattr(estimator, "feature_names_in_", None))
    columns = tuple(_columns(estimator, n_columns, names))
    return Table(
        columns=columns,
        names=None if names is None else tuple(map(str, names)),
        needs_frame=names is not None
        and (
            _picks_columns(first)
            or any(column.datatype != "FP64" or not column.exact for column in columns)
            or makes_frames(estimator)
        ),
    )


def _n_features(estimator: Any) -> int | None:
    n_features = getattr(estimator, "n_features_in_", None)
    return None if n_features is None else int(n_features)


def _steps(estimator: Any) -> list[Any]:
    """Give what a pipeline runs, nested ones flattened; an estimator alone is one step."""
    from sklearn.pipeline import Pipeline

    if not isinstance(estimator, Pipeline):
        return [estimator]
    steps = [step for _, step in estimator.steps if step is not None and step != "passthrough"]
    return [inner for step in steps for inner in _steps(step)] or [estimator]


def _first_step(estimator: Any) -> Any:
    return _steps(estimator)[0]


def _same_input(estimator: Any) -> Iterator[Any]:
    """Give the fitted estimators inside that see the same columns as the estimator."""
    from sklearn.pipeline import FeatureUnion

    if isinstance(estimator, FeatureUnion):
        yield from (part for _, part in estimator.transformer_list if not isinstance(part, str))
    for attribute in _INNER_ATTRIBUTES:
        inner = getattr(estimator, attribute, None)
        inner = inner[0] if isinstance(inner, list) and inner else inner
        if hasattr(inner, "fit") and _n_features(inner) == _n_features(estimator):
            yield inner
    for calibrated in getattr(estimator, "calibrated_classifiers_", ())[:1]:
        yield calibrated.estimator


def _picks_columns(estimator: Any) -> bool:
    from sklearn.compose import ColumnTransformer

    first = _first_step(estimator)
    if isinstance(first, ColumnTransformer) or _is_opaque(first):
        return True
    return any(_picks_columns(inner) for inner in _same_input(first))


def _is_opaque(estimator: Any) -> bool:
    """Tell whether what an estimator does with its columns is code of the user's."""
    from sklearn.preprocessing import FunctionTransformer

    return isinstance(estimator, FunctionTransformer) or not _is_of_sklearn(estimator)


def _is_of_sklearn(estimator: Any) -> bool:
    return type(estimator).__module__.partition(".")[0] == "sklearn"


def _columns(estimator: Any, n_columns: int, names: Sequence[str] | None) -> list[Column]:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer

    first, *rest = _steps(estimator)
    if isinstance(first, ColumnTransformer):
        return _column_transformer_columns(first, n_columns, names)
    if isinstance(first, SimpleImputer):
        return _imputer_columns(first, rest, n_columns)
    categories = getattr(first, "categories_", None)
    if isinstance(categories, list) and len(categories) == n_columns:
        return [_category_column(values) for values in categories]
    if takes_texts(first):
        return [TEXT] * n_columns
    if _is_opaque(first):
        return [UNKNOWN] * n_columns
    is_categorical = getattr(first, "is_categorical_", None)
    if is_categorical is not None:
        return [UNKNOWN if is_one else NUMBER for is_one in is_categorical]
    inner = [_columns(each, n_columns, names) for each in _same_input(first)]
    return _merge(inner, n_columns) if inner else [NUMBER] * n_columns


def _column_transformer_columns(
    transformer: Any, n_columns: int, names: Sequence[str] | None
) -> list[Column]:
    described = []
    for _, part, selection in transformer.transformers_:
        positions = _positions(selection, n_columns, names)
        if isinstance(part, str) or not positions:
            continue
        columns: list[Column | None] = [None] * n_columns
        selected_names = None if names is None else [names[position] for position in positions]
        for position, column in zip(
            positions, _columns(part, len(positions), selected_names), strict=True
        ):
            columns[position] = column
        described.append(columns)
    return _merge(described, n_columns)


def _positions(selection: Any, n_columns: int, names: Sequence[str] | None) -> list[int]:
    """Resolve a column selection of a ColumnTransformer, by label or by position."""
    import pandas as pd

    if isinstance(selection, UserList):
        # That of a remainder, up to scikit-learn 1.6, warns of a change when it is looked into.
        selection = selection.data
    index = pd.Series(range(n_columns), index=range(n_columns) if names is None else names)
    ends = (
        [selection.start, selection.stop] if isinstance(selection, slice) else np.ravel(selection)
    )
    by_label = any(isinstance(end, str) for end in ends)
    picked = index.loc[selection] if by_label else index.iloc[selection]
    return [int(position) for position in np.ravel(picked)]


def _imputer_columns(imputer: Any, rest: Sequence[Any], n_columns: int) -> list[Column]:
    """A text that is filled in is a text; what follows knows the values better."""
    following = _columns(rest[0], n_columns, None) if rest else []
    columns = []
    for position, fill in enumerate(imputer.statistics_):
        column = NUMBER
        if isinstance(fill, str):
            missing = None if imputer.missing_values is None else np.nan
            column = Column("BYTES", missing=missing, example=fill)
            if len(following) == n_columns and following[position].datatype == "BYTES":
                column = following[position]
        columns.append(column)
    return columns


def _category_column(categories: Any) -> Column:
    """Describe a column of which an encoder knows the categories, missing ones last."""
    if categories.dtype.kind in "iuf":
        return Column("FP64", example=float(categories[0])) if len(categories) else NUMBER
    present = [value for value in categories if isinstance(value, str)]
    absent = [value for value in categories if value is None or value != value]
    if not present or len(present) + len(absent) < len(categories):
        return UNKNOWN
    missing = None if any(value is None for value in absent) else np.nan
    return Column("BYTES", missing=missing, example=present[0])


def _merge(described: Sequence[Sequence[Column | None]], n_columns: int) -> list[Column]:
    """Describe columns that several transformers take; where they disagree, nothing is known."""
    merged = []
    for position in range(n_columns):
        seen = [columns[position] for columns in described]
        known = [column for column in seen if column is not None]
        datatypes = {column.datatype for column in known if column.exact}
        agreed = next((column for column in known if column.exact), UNKNOWN)
        merged.append(agreed if len(datatypes) == 1 else UNKNOWN)
    return merged
