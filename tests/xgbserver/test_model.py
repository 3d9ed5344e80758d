import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import xgboost
from numpy.typing import NDArray

from kserve import InferInput, InferRequest, RequestedOutput
from kserve.errors import InvalidInput, ModelLoadError, ModelMissingError
from kserve.model import PredictOptions
from kserve.testing import v1_tables
from xgbserver import XGBoostModel, XGBoostModelRepository

Trained = Callable[[str], Any]
Features = NDArray[np.float32]


def save(directory: Path, booster: Any, name: str = "model.ubj") -> Path:
    directory.mkdir(exist_ok=True)
    # Otherwise it says that what is called .bst is UBJSON.
    with xgboost.config_context(verbosity=0):
        booster.save_model(directory / name)
    return directory


def serve(tmp_path: Path, booster: Any, **options: Any) -> XGBoostModel:
    model = XGBoostModel("m", str(save(tmp_path, booster)), **options)
    assert not model.ready
    assert model.load() and model.ready
    return model


def v2(model: XGBoostModel, tensors: dict[str, NDArray[Any]], **request: Any) -> dict[str, Any]:
    datatypes = {"float32": "FP32", "float64": "FP64", "int64": "INT64"}
    inputs = [
        InferInput(name, list(array.shape), datatypes[array.dtype.name], array)
        for name, array in tensors.items()
    ]
    response = model.predict(InferRequest("m", inputs, **request))
    return {output.name: output.as_numpy() for output in response.outputs}


def predicted(booster: Any, features: Features, **options: Any) -> Any:
    data = xgboost.DMatrix(features, feature_names=booster.feature_names)
    return booster.predict(data, **options)


@pytest.mark.parametrize("name", ["model.bst", "model.json", "model.ubj"])
def test_serves_what_a_booster_saves(
    tmp_path: Path, booster: Trained, features: Features, name: str
) -> None:
    trained = booster("classes")
    model = XGBoostModel("m", str(save(tmp_path, trained, name)), 1)
    model.load()

    assert v2(model, {"x": features})["output-0"].tolist() == predicted(trained, features).tolist()
    assert model.platform == "xgboost"


def test_a_booster_may_be_given_and_is_ready_at_once(booster: Trained, features: Features) -> None:
    trained = booster("number")
    model = XGBoostModel("m", "/nowhere", 1, trained)

    assert model.ready
    assert model.load()
    assert v2(model, {"x": features})["output-0"].tolist() == predicted(trained, features).tolist()


def test_a_wrapper_may_be_given(features: Features, labels: dict[str, NDArray[Any]]) -> None:
    wrapper = xgboost.XGBClassifier(n_estimators=3, n_jobs=2).fit(features, labels["classes"])
    model = XGBoostModel("m", "/nowhere", 1, booster=wrapper)

    assert v2(model, {"x": features})["output-0"].tolist() == wrapper.predict(features).tolist()
    assert wrapper.n_jobs == 1


# Rows 3 and 4, which have no missing value.
ROWS = {"age": [0.5, -1.0], "height": [1.5, 2.0], "bias": [0.25, -0.5], "x y": [3.0, -4.0]}
V1_TABLES = v1_tables(ROWS)


@pytest.mark.parametrize("body", V1_TABLES.values(), ids=V1_TABLES)
def test_named_columns_come_in_every_form_of_v1(
    tmp_path: Path, booster: Trained, body: dict[str, Any]
) -> None:
    trained = booster("named")
    model = serve(tmp_path, trained)
    rows = np.column_stack(list(ROWS.values())).astype(np.float32)

    assert model.predict(body) == {"predictions": predicted(trained, rows).tolist()}


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_named_columns_come_as_tensors_in_any_order(
    tmp_path: Path, booster: Trained, dtype: str
) -> None:
    trained = booster("named")
    model = serve(tmp_path, trained)
    columns = {name: np.array(values).astype(dtype) for name, values in ROWS.items()}
    rows = np.column_stack(list(columns.values())).astype(np.float32)

    columns = dict(reversed(columns.items()))
    named = v2(model, columns)
    framed = v2(model, columns, parameters={"content_type": "pd"})
    matrix = v2(model, {"anything": rows})

    expected = {"output-0": predicted(trained, rows).tolist()}
    for given in (named, framed, matrix):
        assert {name: array.tolist() for name, array in given.items()} == expected


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(
            {"instances": [{"age": 1, "height": 2, "bias": 3, "weight": 4}]},
            "expected inputs 'age', 'height', 'bias', 'x y': missing 'x y', unknown 'weight'",
            id="another name",
        ),
        pytest.param(
            {"instances": [[1, 2, 3]]},
            "row 0: expected 4 values (age, height, bias, x y), got 3",
            id="a missing column",
        ),
        pytest.param(
            {"instances": [[1, 2, 3, "x"]]},
            "input 'x y': the value at [0] is a string, expected FP32",
            id="a text",
        ),
    ],
)
def test_columns_are_checked(
    tmp_path: Path, booster: Trained, body: dict[str, Any], reason: str
) -> None:
    model = serve(tmp_path, booster("named"))

    with pytest.raises(InvalidInput) as caught:
        model.predict(body)

    assert str(caught.value) == reason


def test_null_is_missing(tmp_path: Path, booster: Trained) -> None:
    trained = booster("named")
    model = serve(tmp_path, trained)
    rows = np.array([[np.nan, 1, 2, 3], [1, np.nan, np.nan, 3]], np.float32)
    body = {"instances": [[None, 1, 2, 3], [1, None, None, 3]]}
    records = {"instances": [{"age": None, "height": 1, "bias": 2, "x y": 3}]}

    assert model.predict(body) == {"predictions": predicted(trained, rows).tolist()}
    assert model.predict(records) == {"predictions": predicted(trained, rows[:1]).tolist()}


def test_categories_are_sent_as_codes(
    tmp_path: Path, booster: Trained, categorical: pd.DataFrame
) -> None:
    trained = booster("categories")
    model = serve(tmp_path, trained)
    codes = {name: categorical[name].cat.codes.tolist() for name in ("colour", "size")}
    # pandas' code of a missing category.
    columns = {name: [None if c == -1 else c for c in values] for name, values in codes.items()}
    age = [None if np.isnan(value) else float(value) for value in categorical["age"]]

    answer = model.predict({"inputs": {"age": age, **columns}})

    data = xgboost.DMatrix(categorical, enable_categorical=True)
    assert answer == {"predictions": trained.predict(data).tolist()}


# Methods.


def test_a_request_chooses_methods_and_outputs(
    tmp_path: Path, booster: Trained, features: Features
) -> None:
    trained = booster("classes")
    model = serve(tmp_path, trained)
    outputs = [RequestedOutput("margin"), RequestedOutput("output-0")]

    by_parameter = v2(model, {"x": features}, parameters={"method": "leaf"})
    by_outputs = v2(model, {"x": features}, request_outputs=outputs)

    np.testing.assert_array_equal(
        by_parameter["output-0"], predicted(trained, features, pred_leaf=True)
    )
    assert list(by_outputs) == ["margin", "output-0"]
    np.testing.assert_array_equal(
        by_outputs["margin"], predicted(trained, features, output_margin=True)
    )
    np.testing.assert_array_equal(by_outputs["output-0"], predicted(trained, features))


def test_the_command_line_chooses_the_method(
    tmp_path: Path, booster: Trained, features: Features
) -> None:
    trained = booster("classes")
    model = serve(tmp_path, trained, method="contributions")

    given = v2(model, {"x": features})["output-0"]

    np.testing.assert_array_equal(given, predicted(trained, features, pred_contribs=True))
    assert model.get_output_types() == [
        {"name": "output-0", "datatype": "FP32", "shape": [-1, 3, 5]}
    ]


@pytest.mark.parametrize(("value", "expected"), [("0:2", (0, 2)), ("2:6", (2, 6)), ("all", (0, 0))])
def test_a_request_chooses_the_rounds(
    tmp_path: Path, booster: Trained, features: Features, value: str, expected: tuple[int, int]
) -> None:
    trained = booster("number")
    model = serve(tmp_path, trained, iteration_range="0:1")

    given = v2(model, {"x": features}, parameters={"iteration_range": value})["output-0"]
    unasked = v2(model, {"x": features})["output-0"]

    np.testing.assert_array_equal(given, predicted(trained, features, iteration_range=expected))
    np.testing.assert_array_equal(unasked, predicted(trained, features, iteration_range=(0, 1)))


@pytest.mark.parametrize(
    ("kind", "parameters", "reason"),
    [
        pytest.param(
            "number",
            {"method": "fit"},
            "parameter 'method': the model has no method 'fit', it has predict, margin, leaf, "
            "contributions, approximate_contributions",
            id="method",
        ),
        pytest.param(
            "number",
            {"iteration_range": "0:9"},
            "parameter 'iteration_range': expected BEGIN < END <= 6, as the model has 6 rounds, "
            "got 0:9",
            id="rounds",
        ),
        pytest.param(
            "linear",
            {"iteration_range": "1:2"},
            "Linear booster does not support prediction range.",
            id="rounds of a linear model",
        ),
    ],
)
def test_a_request_for_what_the_model_lacks_is_refused(
    tmp_path: Path, booster: Trained, kind: str, parameters: dict[str, str], reason: str
) -> None:
    model = serve(tmp_path, booster(kind))

    with pytest.raises(InvalidInput) as caught:
        v2(model, {"x": np.zeros((1, 4))}, parameters=parameters)

    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_that_xgboost_refuses_are_the_clients(tmp_path: Path, booster: Trained) -> None:
    model = serve(tmp_path, booster("number"))

    with pytest.raises(InvalidInput) as caught:
        v2(model, {"x": np.full((1, 4), np.inf)}, parameters={"method": "contributions"})

    assert str(caught.value).startswith("Check failed: valid: Input data contains `inf`")


def test_what_costs_alike_is_of_one_kind(tmp_path: Path, booster: Trained) -> None:
    model = serve(tmp_path, booster("number"))

    kinds = [
        model.cost_kind(PredictOptions(parameters))
        for parameters in ({}, {"iteration_range": "0:1"}, {"method": "contributions"})
    ]

    assert kinds == ["predict", "predict", "contributions"]


# Explanations.


def explained(values: NDArray[Any], names: list[str]) -> list[dict[str, Any]]:
    return [{name: row[..., index].tolist() for index, name in enumerate(names)} for row in values]


def test_explains_by_the_names_of_the_features(
    tmp_path: Path, booster: Trained, features: Features
) -> None:
    trained = booster("named")
    model = serve(tmp_path, trained)
    body = {"instances": np.nan_to_num(features[:3]).tolist()}
    names = [*trained.feature_names, "bias_"]

    exact = model.explain(body)
    approximate = model.explain({**body, "parameters": {"method": "approximate_contributions"}})

    rows = np.nan_to_num(features[:3])
    values = predicted(trained, rows, pred_contribs=True)
    assert exact == {"explanations": explained(values, names)}
    values = predicted(trained, rows, pred_contribs=True, approx_contribs=True)
    assert approximate == {"explanations": explained(values, names)}


def test_explains_each_class(tmp_path: Path, booster: Trained, features: Features) -> None:
    trained = booster("classes")
    model = serve(tmp_path, trained)
    rows = np.nan_to_num(features[:3])

    answer = model.explain({"instances": rows.tolist()})

    values = predicted(trained, rows, pred_contribs=True)
    assert answer == {"explanations": explained(values, ["f0", "f1", "f2", "f3", "bias"])}
    # They add up to the margin.
    total = [np.sum(list(row.values()), axis=0) for row in answer["explanations"]]
    np.testing.assert_allclose(total, predicted(trained, rows, output_margin=True), rtol=1e-4)


def test_explains_by_no_other_method(tmp_path: Path, booster: Trained) -> None:
    model = serve(tmp_path, booster("number"))

    with pytest.raises(InvalidInput) as caught:
        model.explain({"instances": [[1, 2, 3, 4]], "parameters": {"method": "leaf"}})

    assert str(caught.value) == (
        "parameter 'method': expected contributions or approximate_contributions, got 'leaf'"
    )


def test_a_model_that_xgboost_cannot_explain_says_so(tmp_path: Path, booster: Trained) -> None:
    model = serve(tmp_path, booster("vectors"))

    with pytest.raises(NotImplementedError, match="^model m does not implement explain$"):
        model.explain({"instances": [[1, 2, 3, 4]]})


# Command line, artifacts, repository.


def parse(*argv: str) -> XGBoostModel:
    parser = argparse.ArgumentParser()
    XGBoostModel.add_arguments(parser)
    return XGBoostModel.from_args("m", "/nowhere", parser.parse_args(argv))


def test_the_command_line_says_how_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kserve.cpu.cpu_count", lambda: 5)
    flags = ("--nthread", "-1", "--method", "margin", "--iteration_range", "best")

    assert (
        vars(parse(*flags, "--allow_pickle")).items()
        >= {
            "nthread": 5,
            "_method": "margin",
            "_iteration_range": "best",
            "_allow_pickle": True,
        }.items()
    )
    assert (
        vars(parse()).items()
        >= {
            "nthread": 1,
            "_method": None,
            "_iteration_range": None,
            "_allow_pickle": None,
        }.items()
    )


def test_a_pickle_is_loaded_where_the_environment_trusts_it(
    tmp_path: Path,
    features: Features,
    labels: dict[str, NDArray[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrapper = xgboost.XGBRegressor(n_estimators=3).fit(features, labels["numbers"])
    joblib.dump(wrapper, tmp_path / "model.joblib")
    model = XGBoostModel("m", str(tmp_path))

    with pytest.raises(ModelLoadError, match="refused, because a pickle can run any code"):
        model.load()
    monkeypatch.setenv("KSERVE_ALLOW_PICKLE", "true")
    model.load()

    assert v2(model, {"x": features})["output-0"].tolist() == wrapper.predict(features).tolist()


def test_a_directory_without_or_with_several_artifacts_is_an_error(
    tmp_path: Path, booster: Trained
) -> None:
    model = XGBoostModel("m", str(tmp_path))

    with pytest.raises(ModelMissingError, match=r"expected exactly one of \*\.bst, \*\.json"):
        model.load()
    save(tmp_path, booster("number"), "a.json")
    save(tmp_path, booster("number"), "b.bst")
    with pytest.raises(ModelLoadError, match="More than one model file is detected"):
        model.load()


def test_a_repository_loads_every_directory(tmp_path: Path, booster: Trained) -> None:
    save(tmp_path / "one", booster("number"))
    save(tmp_path / "two", booster("classes"), "model.json")

    repository = XGBoostModelRepository(str(tmp_path), 2)

    models = repository.get_models()
    assert sorted(models) == ["one", "two"]
    assert all(isinstance(model, XGBoostModel) and model.ready for model in models.values())
    assert {vars(model)["nthread"] for model in models.values()} == {2}
