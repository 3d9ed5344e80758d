import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from kserve import InferInput, InferRequest, RequestedOutput
from kserve.errors import InvalidInput, ModelLoadError, ModelMissingError
from kserve.model import PredictOptions
from kserve.protocol.codec.dtypes import from_np_dtype
from kserve.testing import v1_tables
from lgbserver import LightGBMModel, LightGBMModelRepository
from lgbserver.iterations import Iterations

Trained = Callable[[str], Any]
Features = NDArray[np.float64]


def save(directory: Path, booster: Any, name: str = "model.txt") -> Path:
    directory.mkdir(exist_ok=True)
    booster.save_model(directory / name)
    return directory


def serve(tmp_path: Path, booster: Any, **options: Any) -> LightGBMModel:
    model = LightGBMModel("m", str(save(tmp_path, booster)), **options)
    assert not model.ready
    assert model.load() and model.ready
    return model


def v2(model: LightGBMModel, tensors: dict[str, NDArray[Any]], **request: Any) -> dict[str, Any]:
    inputs = []
    for name, array in tensors.items():
        datatype = from_np_dtype(array.dtype)
        assert datatype is not None
        inputs.append(InferInput(name, list(array.shape), datatype, array))
    response = model.predict(InferRequest("m", inputs, **request))
    return {output.name: output.as_numpy() for output in response.outputs}


@pytest.mark.parametrize("name", ["model.txt", "model.bin", "model.bst"])
def test_serves_what_a_booster_saves(
    tmp_path: Path, booster: Trained, features: Features, name: str
) -> None:
    trained = booster("classes")
    model = LightGBMModel("m", str(save(tmp_path, trained, name)), 1)
    model.load()

    given = v2(model, {"x": features})["output-0"]

    np.testing.assert_array_equal(given, trained.predict(features))
    assert model.platform == "lightgbm"


def test_a_booster_may_be_given_and_is_ready_at_once(booster: Trained, features: Features) -> None:
    trained = booster("number")
    model = LightGBMModel("m", "/nowhere", 1, trained)

    assert model.ready
    assert model.load()
    np.testing.assert_array_equal(v2(model, {"x": features})["output-0"], trained.predict(features))


def test_a_booster_that_knows_its_best_iteration_uses_it(features: Features) -> None:
    labels = np.nan_to_num(features[:, 0])
    data = lightgbm.Dataset(features[:200], labels[:200])
    trained = lightgbm.train(
        {"verbosity": -1, "metric": "l2"},
        data,
        20,
        valid_sets=[lightgbm.Dataset(features[200:], -labels[200:], reference=data)],
        keep_training_booster=True,
        callbacks=[lightgbm.early_stopping(3, verbose=False)],
    )
    model = LightGBMModel("m", "/nowhere", booster=trained)

    best = v2(model, {"x": features})["output-0"]
    every = v2(model, {"x": features}, parameters={"num_iteration": -1})["output-0"]

    assert 0 < trained.best_iteration < trained.current_iteration()
    np.testing.assert_array_equal(best, trained.predict(features))
    np.testing.assert_array_equal(every, trained.predict(features, num_iteration=-1))
    assert not np.array_equal(best, every)


# Rows without a missing value; LightGBM puts an underline for a blank.
ROWS = {"age": [0.5, -1.0], "height": [1.5, 2.0], "bias": [0.25, -0.5], "x_y": [3.0, -4.0]}
V1_TABLES = v1_tables(ROWS)


@pytest.mark.parametrize("body", V1_TABLES.values(), ids=V1_TABLES)
def test_named_columns_come_in_every_form_of_v1(
    tmp_path: Path, booster: Trained, body: dict[str, Any]
) -> None:
    trained = booster("named")
    model = serve(tmp_path, trained)

    assert model.predict(body) == {
        "predictions": trained.predict(np.column_stack(list(ROWS.values()))).tolist()
    }


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_named_columns_come_as_tensors_in_any_order(
    tmp_path: Path, booster: Trained, dtype: str
) -> None:
    trained = booster("named")
    model = serve(tmp_path, trained)
    columns = {name: np.array(values).astype(dtype) for name, values in ROWS.items()}
    expected = trained.predict(np.column_stack(list(columns.values())))

    columns = dict(reversed(columns.items()))
    named = v2(model, {name: column.reshape(-1, 1) for name, column in columns.items()})
    framed = v2(model, columns, parameters={"content_type": "pd"})

    np.testing.assert_array_equal(named["output-0"], expected)
    np.testing.assert_array_equal(framed["output-0"], expected)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(
            {"instances": [{"age": 1, "height": 2, "bias": 3, "x y": 4}]},
            "expected inputs 'age', 'height', 'bias', 'x_y': missing 'x_y', unknown 'x y'",
            id="another name",
        ),
        pytest.param(
            {"instances": [[1, 2, 3]]},
            "row 0: expected 4 values (age, height, bias, x_y), got 3",
            id="a missing column",
        ),
        pytest.param(
            {"instances": [[1, 2, 3, "x"]]},
            "input 'x_y': the value at [0] is a string, expected FP64",
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
    trained = booster("number")
    model = serve(tmp_path, trained)
    rows = np.array([[np.nan, 1, 2, 3], [1, np.nan, np.nan, 3]])

    answer = model.predict({"instances": [[None, 1, 2, 3], [1, None, None, 3]]})

    assert answer == {"predictions": trained.predict(rows).tolist()}


# Categories.


def lists_of(frame: pd.DataFrame) -> dict[str, list[Any]]:
    return {
        name: [None if pd.isna(value) else value for value in frame[name].tolist()]
        for name in frame
    }


def test_named_columns_of_categories_hold_their_values(
    tmp_path: Path, booster: Trained, categorical: pd.DataFrame
) -> None:
    trained = booster("categories")
    model = serve(tmp_path, trained)
    columns = lists_of(categorical)
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    mixed = {"instances": [list(record.values()) for record in records]}

    answers = [model.predict(body) for body in ({"inputs": columns}, {"instances": records}, mixed)]

    assert answers == [{"predictions": trained.predict(categorical).tolist()}] * 3


def test_tensors_of_categories_hold_their_values(
    tmp_path: Path, booster: Trained, categorical: pd.DataFrame
) -> None:
    trained = booster("categories")
    model = serve(tmp_path, trained)
    rows = categorical.dropna()
    tensors = {
        "sold": rows["sold"].to_numpy(dtype=bool),
        "colour": np.array([text.encode() for text in rows["colour"]], object),
        "size": rows["size"].to_numpy(dtype=np.int64),
        "age": rows["age"].to_numpy(),
    }

    np.testing.assert_array_equal(v2(model, tensors)["output-0"], trained.predict(rows))


def test_a_category_that_training_has_not_seen_is_missing(
    tmp_path: Path, booster: Trained, categorical: pd.DataFrame
) -> None:
    trained = booster("categories")
    model = serve(tmp_path, trained)
    missing = pd.DataFrame(
        {
            "age": [0.5],
            **{
                name: pd.Categorical([None], categorical[name].cat.categories)
                for name in ("colour", "size", "sold")
            },
        }
    )

    answer = model.predict({"instances": [[0.5, "pink", 99, None]]})

    assert answer == {"predictions": trained.predict(missing).tolist()}


def test_one_array_of_categories_holds_codes(
    tmp_path: Path, booster: Trained, categorical: pd.DataFrame
) -> None:
    trained = booster("categories")
    model = serve(tmp_path, trained)
    codes = [categorical[name].cat.codes for name in ("colour", "size", "sold")]
    matrix = np.column_stack([categorical["age"], *codes]).astype(np.float64)

    given = v2(model, {"x": matrix})["output-0"]

    np.testing.assert_array_equal(given, trained.predict(categorical))


# Methods.


def test_a_request_chooses_methods_and_outputs(
    tmp_path: Path, booster: Trained, features: Features
) -> None:
    trained = booster("classes")
    model = serve(tmp_path, trained)
    outputs = [RequestedOutput("raw_score"), RequestedOutput("output-0")]

    by_parameter = v2(model, {"x": features}, parameters={"method": "leaf"})
    by_outputs = v2(model, {"x": features}, request_outputs=outputs)

    np.testing.assert_array_equal(
        by_parameter["output-0"], trained.predict(features, pred_leaf=True)
    )
    assert list(by_outputs) == ["raw_score", "output-0"]
    np.testing.assert_array_equal(
        by_outputs["raw_score"], trained.predict(features, raw_score=True)
    )
    np.testing.assert_array_equal(by_outputs["output-0"], trained.predict(features))


def test_a_request_chooses_iterations(tmp_path: Path, booster: Trained, features: Features) -> None:
    trained = booster("number")
    model = serve(tmp_path, trained, num_iteration=1)
    parameters = {"start_iteration": 2, "num_iteration": 3}

    given = v2(model, {"x": features}, parameters=parameters)["output-0"]
    unasked = v2(model, {"x": features})["output-0"]

    np.testing.assert_array_equal(given, trained.predict(features, **parameters))
    np.testing.assert_array_equal(unasked, trained.predict(features, num_iteration=1))


def test_rows_of_any_shape_are_taken_where_that_is_asked_for(
    tmp_path: Path, booster: Trained, features: Features
) -> None:
    trained = booster("number")
    model = serve(tmp_path, trained, predict_disable_shape_check=True)
    wide, narrow = np.column_stack([features, features]), features[:, :3]

    assert model.get_input_types() == [{"name": "input-0", "datatype": "FP64", "shape": [-1, -1]}]
    for rows in (wide, narrow, features):
        np.testing.assert_array_equal(
            v2(model, {"x": rows})["output-0"],
            trained.predict(rows, predict_disable_shape_check=True),
        )


def test_a_request_for_what_the_model_lacks_is_refused(tmp_path: Path, booster: Trained) -> None:
    model = serve(tmp_path, booster("linear tree"))

    with pytest.raises(InvalidInput) as caught:
        v2(model, {"x": np.zeros((1, 4))}, parameters={"method": "contributions"})

    assert str(caught.value) == (
        "parameter 'method': the model has no method 'contributions', it has predict, raw_score, "
        "leaf"
    )


def test_what_costs_alike_is_of_one_kind(tmp_path: Path, booster: Trained) -> None:
    model = serve(tmp_path, booster("number"))

    kinds = [
        model.cost_kind(PredictOptions(parameters))
        for parameters in ({}, {"num_iteration": 1}, {"method": "contributions"})
    ]

    assert kinds == ["predict", "predict", "contributions"]


# Explanations.


def test_explains_by_the_names_of_the_features(
    tmp_path: Path, booster: Trained, features: Features
) -> None:
    trained = booster("named")
    model = serve(tmp_path, trained)
    rows = np.nan_to_num(features[:3])

    answer = model.explain({"instances": rows.tolist()})

    names = ["age", "height", "bias", "x_y", "bias_"]
    values = trained.predict(rows, pred_contrib=True)
    assert answer == {
        "explanations": [dict(zip(names, row.tolist(), strict=True)) for row in values]
    }


def test_explains_each_class(tmp_path: Path, booster: Trained, features: Features) -> None:
    trained = booster("classes")
    model = serve(tmp_path, trained)
    rows = np.nan_to_num(features[:3])

    answer = model.explain({"instances": rows.tolist(), "parameters": {"num_iteration": 2}})

    values = trained.predict(rows, pred_contrib=True, num_iteration=2).reshape(3, 3, 5)
    names = [*(f"Column_{index}" for index in range(4)), "bias"]
    assert answer == {
        "explanations": [
            {name: row[:, index].tolist() for index, name in enumerate(names)} for row in values
        ]
    }
    total = [np.sum(list(row.values()), axis=0) for row in answer["explanations"]]
    raw = trained.predict(rows, raw_score=True, num_iteration=2)
    np.testing.assert_allclose(total, raw)


def test_a_model_that_lightgbm_cannot_explain_says_so(tmp_path: Path, booster: Trained) -> None:
    model = serve(tmp_path, booster("linear tree"))

    with pytest.raises(NotImplementedError, match="^model m does not implement explain$"):
        model.explain({"instances": [[1, 2, 3, 4]]})


# Command line, artifacts, repository.


def parse(*argv: str) -> LightGBMModel:
    parser = argparse.ArgumentParser()
    LightGBMModel.add_arguments(parser)
    return LightGBMModel.from_args("m", "/nowhere", parser.parse_args(argv))


def test_the_command_line_says_how_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kserve.cpu.cpu_count", lambda: 5)
    iterations = ("--start_iteration", "2", "--num_iteration", "-1")
    flags = ("--nthread", "-1", "--method", "raw_score", *iterations)

    assert (
        vars(parse(*flags, "--predict_disable_shape_check")).items()
        >= {
            "nthread": 5,
            "_method": "raw_score",
            "_iterations": Iterations(2, -1),
            "_takes_any_shape": True,
        }.items()
    )
    assert (
        vars(parse()).items()
        >= {
            "nthread": 1,
            "_method": "predict",
            "_iterations": Iterations(0, None),
            "_takes_any_shape": False,
        }.items()
    )


def test_a_directory_without_or_with_several_artifacts_is_an_error(
    tmp_path: Path, booster: Trained
) -> None:
    model = LightGBMModel("m", str(tmp_path))

    with pytest.raises(ModelMissingError, match=r"expected exactly one of \*\.txt, \*\.bin"):
        model.load()
    save(tmp_path, booster("number"), "a.txt")
    save(tmp_path, booster("number"), "b.bst")
    with pytest.raises(ModelLoadError, match="More than one model file is detected"):
        model.load()


def test_a_repository_loads_every_directory(tmp_path: Path, booster: Trained) -> None:
    save(tmp_path / "one", booster("number"))
    save(tmp_path / "two", booster("classes"), "model.bin")

    repository = LightGBMModelRepository(str(tmp_path), 2)

    models = repository.get_models()
    assert sorted(models) == ["one", "two"]
    assert all(isinstance(model, LightGBMModel) and model.ready for model in models.values())
    assert {vars(model)["nthread"] for model in models.values()} == {2}
