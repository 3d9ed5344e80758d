"""What every kind of model gives, against what XGBoost itself gives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost
from numpy.typing import NDArray

from kserve.errors import ModelLoadError
from xgbserver.booster import Rows, ServedBooster, describe

Trained = Callable[[str], Any]
Features = NDArray[np.float32]

# What each method is to `Booster.predict`.
OPTIONS: dict[str, dict[str, bool]] = {
    "predict": {},
    "margin": {"output_margin": True},
    "leaf": {"pred_leaf": True},
    "contributions": {"pred_contribs": True},
    "approximate_contributions": {"pred_contribs": True, "approx_contribs": True},
}
LACKING = {"vectors": {"contributions", "approximate_contributions"}, "linear": {"leaf"}}


def serve(model: Any, method: str | None = None, iteration_range: str | None = None) -> Any:
    return describe(model, method=method, iteration_range=iteration_range, owner="m")


def rows_of(kind: str, features: Features, categorical: pd.DataFrame) -> Features:
    if kind != "categories":
        return features
    codes = [categorical[name].cat.codes.replace(-1, np.nan) for name in ("colour", "size")]
    return np.column_stack([categorical["age"], *codes]).astype(np.float32)


def data_of(kind: str, rows: Features, categorical: pd.DataFrame) -> Any:
    if kind == "categories":
        return xgboost.DMatrix(categorical.iloc[: len(rows)], enable_categorical=True)
    return xgboost.DMatrix(rows)


@pytest.mark.parametrize("n_rows", [1, 2, 200])
def test_every_method_gives_what_xgboost_gives(
    kind: str, n_rows: int, booster: Trained, features: Features, categorical: pd.DataFrame
) -> None:
    trained = booster(kind)
    served: ServedBooster = serve(trained)
    rows = rows_of(kind, features, categorical)[:n_rows]
    data = data_of(kind, rows, categorical)

    given = {
        name: call(Rows(rows, served.iterations)) for name, call in served.methods.calls.items()
    }

    assert set(given) == set(OPTIONS) - LACKING.get(kind, set())
    for name, array in given.items():
        expected = trained.predict(data, validate_features=False, **OPTIONS[name])
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape), name
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_the_signature_is_that_of_the_arrays(
    kind: str, booster: Trained, features: Features, categorical: pd.DataFrame
) -> None:
    served: ServedBooster = serve(booster(kind))
    rows = rows_of(kind, features, categorical)

    for spec in served.signature.optional_outputs:
        array = served.methods.calls[spec.name](Rows(rows, served.iterations))
        assert (spec.datatype, spec.shape) == ("FP32", (-1, *array.shape[1:]))
    first = served.signature.optional_outputs[0]
    (output,) = served.signature.outputs
    assert (output.name, output.datatype, output.shape) == ("output-0", "FP32", first.shape)


def test_no_rows_are_answered_with_none(kind: str, booster: Trained) -> None:
    served: ServedBooster = serve(booster(kind))
    rows = Rows(np.empty((0, booster(kind).num_features()), np.float32), served.iterations)

    for spec in served.signature.optional_outputs:
        assert served.methods.calls[spec.name](rows).shape == (0, *spec.shape[1:])


def test_inputs_are_one_array_or_named_columns(booster: Trained) -> None:
    array = serve(booster("number")).signature
    columns = serve(booster("named")).signature

    assert ([spec.metadata() for spec in array.inputs], array.is_table) == (
        [{"name": "input-0", "datatype": "FP32", "shape": [-1, 4]}],
        False,
    )
    assert ([spec.metadata() for spec in columns.inputs], columns.is_table) == (
        [
            {"name": name, "datatype": "FP32", "shape": [-1]}
            for name in ("age", "height", "bias", "x y")
        ],
        True,
    )


@pytest.mark.parametrize(
    ("iteration_range", "expected"), [(None, (0, 0)), ("all", (0, 0)), ("1:3", (1, 3))]
)
def test_all_rounds_of_a_booster_count_unless_it_is_told_otherwise(
    iteration_range: str | None,
    expected: tuple[int, int],
    booster: Trained,
    features: Features,
) -> None:
    trained = booster("stopped early")
    served = serve(trained, iteration_range=iteration_range)

    given = served.methods.calls["predict"](Rows(features, served.iterations))

    data = xgboost.DMatrix(features)
    assert served.iterations == expected
    np.testing.assert_array_equal(given, trained.predict(data, iteration_range=expected))


def test_the_best_round_is_that_of_early_stopping(booster: Trained) -> None:
    trained = booster("stopped early")

    assert serve(trained, iteration_range="best").iterations == (0, trained.best_iteration + 1)


# The classes of XGBoost's for scikit-learn.


@pytest.mark.parametrize("name", ["numbers", "classes", "targets"])
def test_a_wrapper_predicts_as_itself(
    name: str, features: Features, labels: dict[str, NDArray[Any]]
) -> None:
    kind = xgboost.XGBClassifier if name == "classes" else xgboost.XGBRegressor
    model = kind(n_estimators=4, n_jobs=1).fit(features, labels[name])
    served = serve(model)
    rows = Rows(features, served.iterations)

    given = {method: call(rows) for method, call in served.methods.calls.items()}

    np.testing.assert_array_equal(given["predict"], model.predict(features))
    assert given["predict"].dtype == model.predict(features).dtype
    np.testing.assert_array_equal(given["margin"], model.predict(features, output_margin=True))
    if name == "classes":
        np.testing.assert_array_equal(given["predict_proba"], model.predict_proba(features))
    assert ("predict_proba" in given) == (name == "classes")


def test_a_wrapper_stops_at_its_best_round(
    features: Features, labels: dict[str, NDArray[Any]]
) -> None:
    numbers = labels["numbers"]
    model = xgboost.XGBRegressor(n_estimators=20, early_stopping_rounds=2, base_score=0.5)
    model.fit(features, numbers, eval_set=[(features, -numbers)], verbose=False)
    served = serve(model)
    whole = serve(model, iteration_range="all")

    given = served.methods.calls["predict"](Rows(features, served.iterations))
    all_rounds = whole.methods.calls["predict"](Rows(features, whole.iterations))

    assert served.iterations == (0, model.best_iteration + 1)
    np.testing.assert_array_equal(given, model.predict(features))
    data = xgboost.DMatrix(features)
    np.testing.assert_array_equal(all_rounds, model.get_booster().predict(data))
    assert not np.array_equal(given, all_rounds)


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        pytest.param(
            lambda trained: trained("linear"),
            {"method": "leaf"},
            "m: has no method leaf (gblinear does not support prediction of leaf index); it has "
            "predict, margin, contributions, approximate_contributions",
            id="a method that the model does not have",
        ),
        pytest.param(
            lambda trained: trained("number"),
            {"method": "predict_proba"},
            "m: has no method predict_proba; it has predict, margin, leaf, contributions, "
            "approximate_contributions",
            id="a method of wrappers",
        ),
        pytest.param(
            lambda trained: trained("number"),
            {"iteration_range": "0:7"},
            "m: --iteration_range: expected BEGIN < END <= 6, as the model has 6 rounds, got 0:7",
            id="too many rounds",
        ),
        pytest.param(
            lambda trained: xgboost.XGBRegressor(),
            {},
            "m: XGBRegressor is not fitted; save it after fit",
            id="not fitted",
        ),
        pytest.param(
            lambda trained: xgboost.Booster(),
            {},
            "m: the model is not trained (Check failed: mparam_.num_feature != 0 (0 vs. 0) : 0 "
            "feature is supplied. Are you using raw Booster interface?)",
            id="not trained",
        ),
    ],
)
def test_says_why_a_model_cannot_be_served(
    make: Callable[[Trained], Any], options: dict[str, str], reason: str, booster: Trained
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        serve(make(booster), **options)

    assert str(caught.value) == reason
