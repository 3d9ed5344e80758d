"""The categories of columns that were categorical in the DataFrame that a model was trained on.

LightGBM keeps them behind the model, as a list of values for each such column, whose order is that
of the codes. It does not say which columns these are: the categorical features of the model, unless
one of them was ordered or constant, and is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kserve.logging import logger
from kserve.tables import decode_texts


@dataclass(frozen=True, slots=True)
class Categories:
    """The values of one column, in the order of their codes.

    Attributes:
        texts: Code of each value that is a text.
        numbers: Code of each value that is a number; a boolean is 0 or 1.
    """

    texts: Mapping[str, float]
    numbers: Mapping[float, float]

    def encode(self, array: NDArray[Any], name: str) -> NDArray[Any]:
        """Give the codes of values; NaN, which is missing, for one that training has not seen.

        Numbers are codes already where all categories are texts.

        Args:
            array: Values of the column, shape (n_rows,).
            name: The column's name.

        Raises:
            InvalidInput: A text is not UTF-8.
        """
        if array.dtype.kind != "O":
            return _look_up(array, self.numbers) if self.numbers else array
        return _look_up(decode_texts(array, name, missing=np.nan), self.texts)


def find_categories(
    feature_infos: Sequence[str], values: Sequence[Sequence[Any]] | None, owner: str
) -> dict[int, Categories]:
    """Give the categories of a model's columns by position.

    Args:
        feature_infos: LightGBM's, of each feature: `[min:max]`, the categories as `0:1:2`, or
            `none` for one that is constant.
        values: LightGBM's `pandas_categorical`.
        owner: What log lines call the model.
    """
    positions = [
        index
        for index, info in enumerate(feature_infos)
        if info != "none" and not info.startswith("[")
    ]
    if not values:
        return {}
    if len(positions) != len(values):
        logger.warning(
            "%s was trained on %d categorical columns and has %d categorical features, so it is not"
            " known which are which: send codes for categories",
            owner,
            len(values),
            len(positions),
        )
        return {}
    return {position: _categories(each) for position, each in zip(positions, values, strict=True)}


def _categories(values: Sequence[Any]) -> Categories:
    codes = [(value, float(code)) for code, value in enumerate(values)]
    return Categories(
        texts={value: code for value, code in codes if isinstance(value, str)},
        numbers={float(value): code for value, code in codes if isinstance(value, int | float)},
    )


def _look_up(array: NDArray[Any], codes: Mapping[Any, float]) -> NDArray[Any]:
    values = array.tolist()
    return np.fromiter((codes.get(value, np.nan) for value in values), np.float64, len(values))
