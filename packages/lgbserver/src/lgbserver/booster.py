"""A loaded model: the methods that can be served, and the tensors that it takes and gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import lightgbm
import numpy as np
from numpy.typing import NDArray

from kserve.errors import InvalidInput, ModelLoadError
from kserve.methods import ArrayCall, Methods, try_methods
from kserve.signature import TABLE_NAME, Signature, Tensors, TensorSpec
from kserve.tables import as_matrix, by_feature, table_inputs
from lgbserver.categories import Categories, find_categories
from lgbserver.iterations import Iterations

CONTRIBUTIONS: Final = "contributions"

# What each method is to `Booster.predict`.
_OPTIONS: Final[Mapping[str, Mapping[str, bool]]] = {
    "predict": {},
    "raw_score": {"raw_score": True},
    "leaf": {"pred_leaf": True},
    CONTRIBUTIONS: {"pred_contrib": True},
}
METHODS: Final = tuple(_OPTIONS)

# So many rows are tried at load, to tell the axis of the rows from the others.
_N_TRIAL_ROWS: Final = 2


@dataclass(frozen=True, slots=True)
class Rows:
    """What a method takes.

    Attributes:
        features: Shape (n_rows, n_features); NaN is missing.
        iterations: Those that count.
    """

    features: NDArray[Any]
    iterations: Iterations

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, slots=True)
class ServedBooster:
    """A model, looked at once.

    Attributes:
        signature: What it takes and gives.
        methods: The methods that it has.
        n_iterations: The iterations of boosting.
        iterations: Those that count where a request does not say which.
        feature_names: In order.
        categories: The categories of the columns that have some, by name.
    """

    signature: Signature
    methods: Methods
    n_iterations: int
    iterations: Iterations
    feature_names: tuple[str, ...]
    categories: Mapping[str, Categories]

    @property
    def can_explain(self) -> bool:
        """Whether the model tells what each feature contributes."""
        return CONTRIBUTIONS in self.methods.calls

    def rows(self, tensors: Tensors, parameters: Mapping[str, Any]) -> Rows:
        """Give what methods take.

        A table as one array is taken as LightGBM takes arrays, so categories are codes; named
        columns as it takes a DataFrame, so they are values.

        Raises:
            InvalidInput: There are no such iterations, or text is not UTF-8.
        """
        iterations = self.iterations.of_request(parameters, self.n_iterations)
        columns = self._columns(tensors)
        return Rows(as_matrix(columns), iterations)

    def explain(self, rows: Rows, parameters: Mapping[str, Any]) -> Tensors:
        """Give the SHAP values of each feature, and "bias"; their sum is the raw score.

        Returns:
            By feature: shape (n_rows,), or (n_rows, n_classes) for several classes.
        """
        values = self.methods.calls[CONTRIBUTIONS](rows)
        n_values = len(self.feature_names) + 1
        if values.shape[1] != n_values:
            values = values.reshape(len(values), -1, n_values)
        return by_feature(values, self.feature_names)

    def _columns(self, tensors: Tensors) -> Tensors:
        if not self.categories:
            return tensors
        if TABLE_NAME in tensors and TABLE_NAME not in self.feature_names:
            matrix = tensors[TABLE_NAME]
            if matrix.dtype.kind != "O":
                return tensors
            tensors = dict(zip(self.feature_names, matrix.T, strict=True))
        return {
            name: self.categories[name].encode(array, name) if name in self.categories else array
            for name, array in tensors.items()
        }


def describe(
    booster: Any,
    *,
    method: str,
    iterations: Iterations,
    num_threads: int,
    takes_any_shape: bool,
    owner: str,
) -> ServedBooster:
    """Look at a model, and try its methods on rows of zeros.

    Args:
        booster: A `lightgbm.Booster`.
        method: The method that is to answer.
        iterations: Those that count unless a request says otherwise.
        num_threads: Threads of a prediction.
        takes_any_shape: Rows may have more or fewer features than the model.
        owner: What errors call the model.

    Raises:
        ModelLoadError: It lacks the method or the iterations.
    """
    n_iterations = booster.current_iteration()
    try:
        iterations.check(n_iterations, "flag")
    except InvalidInput as exc:
        raise ModelLoadError(f"{owner}: {exc}") from exc
    names = tuple(booster.feature_name())
    zeros = Rows(np.zeros((_N_TRIAL_ROWS, len(names))), iterations)
    settings = {"num_threads": num_threads, "predict_disable_shape_check": takes_any_shape}
    calls = {name: _call(booster, {**settings, **_OPTIONS[name]}) for name in METHODS}
    tried = try_methods(calls, zeros, method, lightgbm.basic.LightGBMError, owner)
    categories = {} if takes_any_shape else _categories(booster, names, owner)
    # A guess, as codes are welcome too.
    kinds = [
        ("BYTES", False) if name in categories and categories[name].texts else ("FP64", True)
        for name in names
    ]
    any_shape = (TensorSpec(TABLE_NAME, "FP64", (-1, -1)),)
    return ServedBooster(
        signature=Signature(
            inputs=any_shape if takes_any_shape else table_inputs(kinds, names),
            outputs=tried.outputs,
            optional_outputs=tried.optional_outputs,
            is_table=not takes_any_shape,
        ),
        methods=tried.methods,
        n_iterations=n_iterations,
        iterations=iterations,
        feature_names=names,
        categories=categories,
    )


def _call(booster: Any, options: Mapping[str, Any]) -> ArrayCall:
    def call(rows: Rows) -> NDArray[Any]:
        result: NDArray[Any] = booster.predict(
            rows.features,
            start_iteration=rows.iterations.start,
            num_iteration=rows.iterations.number,
            **options,
        )
        return result

    return call


def _categories(booster: Any, names: tuple[str, ...], owner: str) -> dict[str, Categories]:
    if not booster.pandas_categorical:
        return {}
    # Text, as `dump_model` would describe every tree.
    header = booster.model_to_string(num_iteration=1).partition("\nfeature_infos=")[2]
    infos = header.partition("\n")[0].split(" ")
    found = find_categories(infos, booster.pandas_categorical, owner)
    return {names[position]: categories for position, categories in found.items()}
