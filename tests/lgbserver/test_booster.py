"""What every kind of model gives, against what LightGBM itself gives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from kserve.errors import ModelLoadError
from lgbserver.booster import Rows, ServedBooster, describe
from lgbserver.iterations import Iterations

Trained = Callable[[str], Any]
Features = NDArray[np.float64]

# What each method is to `Booster.predict`.
OPTIONS: dict[str, dict[str, bool]] = {
    "predict": {},
    "raw_score": {"raw_score": True},
    "leaf": {"pred_leaf": True},
    "contributions": {"pred_contrib": True},
}
LACKING = {"linear tree": {"contributions"}}


def serve(booster: Any, iterations: Iterations | None = None, method: str = "predict") -> Any:
    return describe(
        booster,
        method=method,
        iterations=iterations or Iterations(),
        num_threads=1,
        takes_any_shape=False,
        owner="m",
    )


def rows_of(kind: str, features: Features, categorical: pd.DataFrame) -> Features:
    if kind != "categories":
        return features
    columns = [categorical[name] for name in ("colour", "size", "sold")]
    codes = [column.cat.codes.replace(-1, np.nan) for column in columns]
    return np.column_stack([categorical["age"], *codes])


@pytest.mark.parametrize("n_rows", [1, 2, 300])
def test_every_method_gives_what_lightgbm_gives(
    kind: str, n_rows: int, booster: Trained, features: Features, categorical: pd.DataFrame
) -> None:
    trained = booster(kind)
    served: ServedBooster = serve(trained)
    rows = rows_of(kind, features, categorical)[:n_rows]
    data = categorical.iloc[:n_rows] if kind == "categories" else rows

    given = {
        name: call(Rows(rows, served.iterations)) for name, call in served.methods.calls.items()
    }

    assert set(given) == set(OPTIONS) - LACKING.get(kind, set())
    for name, array in given.items():
        expected = trained.predict(data, **OPTIONS[name])
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape), name
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_the_signature_is_that_of_the_arrays(
    kind: str, booster: Trained, features: Features, categorical: pd.DataFrame
) -> None:
    served: ServedBooster = serve(booster(kind))
    rows = rows_of(kind, features, categorical)

    for spec in served.signature.optional_outputs:
        call = served.methods.calls[spec.name]
        array, nothing = call(Rows(rows, served.iterations)), call(Rows(rows[:0], Iterations()))
        datatype = "INT32" if spec.name == "leaf" else "FP64"
        assert (spec.datatype, spec.shape) == (datatype, (-1, *array.shape[1:]))
        assert (nothing.dtype, nothing.shape) == (array.dtype, (0, *array.shape[1:]))


def test_inputs_are_named_columns(booster: Trained) -> None:
    plain = serve(booster("number")).signature
    mixed = serve(booster("categories")).signature

    assert [spec.name for spec in plain.inputs] == [f"Column_{index}" for index in range(4)]
    assert [(spec.name, spec.datatype, spec.exact) for spec in mixed.inputs] == [
        ("age", "FP64", True),
        ("colour", "BYTES", False),
        ("size", "FP64", True),
        ("sold", "FP64", True),
    ]
    assert plain.is_table and mixed.is_table


@pytest.mark.parametrize(
    ("iterations", "options"),
    [
        (Iterations(0, 2), {"num_iteration": 2}),
        (Iterations(1, 3), {"start_iteration": 1, "num_iteration": 3}),
        (Iterations(4, -1), {"start_iteration": 4, "num_iteration": -1}),
    ],
)
def test_iterations_are_those_of_lightgbm(
    iterations: Iterations, options: dict[str, int], booster: Trained, features: Features
) -> None:
    trained = booster("classes")
    served: ServedBooster = serve(trained, iterations)

    given = served.methods.calls["predict"](Rows(features, served.iterations))

    np.testing.assert_array_equal(given, trained.predict(features, **options))


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        pytest.param(
            "number",
            {"iterations": Iterations(0, 7)},
            "m: flag 'num_iteration': expected 1 to 6, or -1 for all, got 7",
            id="too many iterations",
        ),
        pytest.param(
            "linear tree",
            {"method": "contributions"},
            "m: has no method contributions (Predicting SHAP feature contributions is not "
            "implemented for linear trees.); it has predict, raw_score, leaf",
            id="a method that the model does not have",
        ),
    ],
)
def test_says_why_a_model_cannot_be_served(
    kind: str, options: dict[str, Any], reason: str, booster: Trained
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        serve(booster(kind), **options)

    assert str(caught.value) == reason
