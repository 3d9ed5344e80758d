import argparse
import asyncio
import io
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import DBSCAN, KMeans
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    BaggingClassifier,
    GradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.manifold import TSNE
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
)
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from kserve import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from kserve.errors import InvalidInput, ModelLoadError, ModelMissingError
from kserve.warmup import warm_up
from sklearnserver import SKLearnModel, SKLearnModelRepository

ROWS = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]
FEATURES, SPECIES = load_iris(return_X_y=True)
SPECIES_NAMES = np.array(["setosa", "versicolor", "virginica"])[SPECIES]

HOUSES = pd.DataFrame(
    {
        "area": [50.0, 80.0, np.nan, 120.0, 65.0, 95.0],
        "city": ["Ghent", "Bruges", "Ghent", np.nan, "Bruges", "Ghent"],
        "floor": [1, 2, 0, 3, 1, 2],
        "notes": ["small flat", "big house", "old", "big old house", "flat", "house"],
    }
)
PRICES = [150.0, 260.0, 180.0, 420.0, 190.0, 310.0]


def serve(tmp_path: Path, estimator: Any, **options: Any) -> SKLearnModel:
    joblib.dump(estimator, tmp_path / "model.joblib")
    model = SKLearnModel("m", str(tmp_path), **options)
    model.load()
    return model


def v2(model: SKLearnModel, tensors: dict[str, np.ndarray[Any, Any]], **request: Any) -> Any:
    inputs = []
    for name, array in tensors.items():
        datatype = {"O": "BYTES", "i": "INT64", "f": "FP64", "b": "BOOL"}[array.dtype.kind]
        inputs.append(InferInput(name, list(array.shape), datatype, array))
    response = model.predict(InferRequest("m", inputs, **request))
    return {
        output.name: (output.datatype, output.as_numpy().tolist()) for output in response.outputs
    }


def text(*values: Any) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.object_)


def house_model() -> Any:
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["area"]),
            (
                "texts",
                make_pipeline(
                    SimpleImputer(strategy="constant", fill_value="nowhere"), OneHotEncoder()
                ),
                ["city"],
            ),
            ("words", TfidfVectorizer(), "notes"),
        ],
        remainder="passthrough",
    )
    return make_pipeline(columns, LinearRegression()).fit(HOUSES, PRICES)


def test_answers_v1_rows_with_predictions(tmp_path: Path) -> None:
    model = serve(tmp_path, SVC().fit(FEATURES, SPECIES))

    assert model.ready
    assert model.predict({"instances": ROWS}) == {"predictions": [1, 1]}


def test_answers_an_infer_request_with_an_infer_response(tmp_path: Path) -> None:
    model = serve(tmp_path, SVC().fit(FEATURES, SPECIES))
    request = InferRequest("m", [InferInput("x", [2, 4], "FP32", ROWS)], request_id="7")

    response = model.predict(request)

    assert response == InferResponse("7", "m", [InferOutput("output-0", [2], "INT64", [1, 1])])


@pytest.mark.parametrize("suffix", [".joblib", ".pkl", ".pickle"])
def test_loads_every_suffix(tmp_path: Path, suffix: str) -> None:
    joblib.dump(SVC().fit(FEATURES, SPECIES), tmp_path / f"model{suffix}")
    model = SKLearnModel("m", str(tmp_path))

    model.load()

    assert model.predict({"instances": ROWS}) == {"predictions": [1, 1]}


@pytest.mark.parametrize(
    ("estimator", "method"),
    [
        pytest.param(RandomForestClassifier(10, random_state=0), "predict", id="classifier"),
        pytest.param(RandomForestClassifier(10, random_state=0), "predict_proba", id="proba"),
        pytest.param(DecisionTreeClassifier(), "predict_log_proba", id="log-proba"),
        pytest.param(LinearRegression(), "predict", id="regressor"),
        pytest.param(KMeans(3, n_init=1, random_state=0), "predict", id="clusterer"),
        pytest.param(KMeans(3, n_init=1, random_state=0), "transform", id="distances"),
        pytest.param(IsolationForest(n_estimators=10, random_state=0), "predict", id="outlier"),
        pytest.param(
            IsolationForest(n_estimators=10, random_state=0), "score_samples", id="outlier-score"
        ),
        pytest.param(
            IsolationForest(n_estimators=10, random_state=0), "decision_function", id="outlier-side"
        ),
        pytest.param(PCA(2), "transform", id="transformer"),
        pytest.param(
            GridSearchCV(make_pipeline(StandardScaler(), SVC()), {"svc__C": [0.1, 1.0]}),
            "decision_function",
            id="search",
        ),
    ],
)
@pytest.mark.parametrize("as_frame", [False, True], ids=["array", "named"])
def test_answers_with_what_the_method_gives(
    tmp_path: Path, estimator: Any, method: str, as_frame: bool
) -> None:
    features, species = load_iris(return_X_y=True, as_frame=as_frame)
    estimator.fit(features, species)
    with np.errstate(divide="ignore"):
        expected = getattr(estimator, method)(features[:5])
    model = serve(tmp_path, estimator, method=method)

    answer = v2(model, {"x": np.asarray(features)[:5]})

    datatypes = {"int32": "INT32", "int64": "INT64", "float64": "FP64"}
    assert answer == {"output-0": (datatypes[expected.dtype.name], expected.tolist())}


def test_takes_named_columns_in_every_form(tmp_path: Path) -> None:
    features, species = load_iris(return_X_y=True, as_frame=True)
    estimator = LogisticRegression(max_iter=500).fit(features, species)
    expected = estimator.predict_proba(features[:3])
    model = serve(tmp_path, estimator, method="predict_proba")
    rows = features[:3].to_numpy()
    columns = {name: features[name].to_numpy()[:3] for name in features}
    backwards = dict(reversed(columns.items()))
    single = {name: column.reshape(-1, 1) for name, column in columns.items()}

    answers = [
        v2(model, {"input-0": rows}),
        v2(model, columns),
        v2(model, backwards),
        v2(model, single),
        v2(model, columns, parameters={"content_type": "pd"}),
    ]
    v1_answers = [
        model.predict({"instances": rows.tolist()}),
        model.predict({"instances": features[:3].to_dict(orient="records")}),
        model.predict({"inputs": features[:3].to_dict(orient="list")}),
    ]

    assert answers == [{"output-0": ("FP64", expected.tolist())}] * 5
    assert v1_answers == [{"predictions": expected.tolist()}] * 3


def test_serves_a_pipeline_of_mixed_columns_in_every_form(tmp_path: Path) -> None:
    estimator = house_model()
    expected = estimator.predict(HOUSES).tolist()
    model = serve(tmp_path, estimator)
    rows = [
        [None if value != value else value for value in row]
        for row in HOUSES.to_numpy(dtype=object).tolist()
    ]
    records = [dict(zip(HOUSES, row, strict=True)) for row in rows]
    columns = {
        "area": HOUSES["area"].to_numpy(),
        "city": text(*(row[1] for row in rows)),
        "floor": HOUSES["floor"].to_numpy(),
        "notes": text(*(note.encode() for note in HOUSES["notes"])),
    }

    answers = [
        v2(model, columns)["output-0"],
        v2(model, columns, parameters={"content_type": "pd"})["output-0"],
    ]
    v1_answers = [
        model.predict({"instances": rows}),
        model.predict({"instances": records}),
        model.predict({"inputs": {name: [row[name] for row in records] for name in HOUSES}}),
    ]

    assert answers == [("FP64", pytest.approx(expected))] * 2
    assert v1_answers == [{"predictions": pytest.approx(expected)}] * 3


def test_null_among_texts_is_what_was_missing_at_fit(tmp_path: Path) -> None:
    with_nan = pd.DataFrame({"city": pd.Series(["Ghent", np.nan, "Bruges"], dtype=object)})
    with_none = pd.DataFrame({"city": pd.Series(["Ghent", None, "Bruges"], dtype=object)})
    (tmp_path / "nan").mkdir()
    (tmp_path / "none").mkdir()

    answers = [
        serve(tmp_path / name, OrdinalEncoder().fit(frame)).predict(
            {"instances": [{"city": "Bruges"}, {"city": None}]}
        )
        for name, frame in {"nan": with_nan, "none": with_none}.items()
    ]

    # An encoder knows None as a category, and passes NaN on, which JSON writes as null.
    assert answers[0] == {"predictions": [[0.0], [None]]}
    assert answers[1] == {
        "predictions": [[0.0], [OrdinalEncoder().fit(with_none).transform(with_none)[1, 0]]]
    }


def test_string_labels_are_bytes(tmp_path: Path) -> None:
    model = serve(tmp_path, SVC().fit(FEATURES, SPECIES_NAMES))

    assert model.predict({"instances": ROWS}) == {"predictions": ["versicolor", "versicolor"]}
    assert v2(model, {"x": np.array(ROWS)}) == {"output-0": ("BYTES", ["versicolor"] * 2)}


def test_boolean_labels_are_bool(tmp_path: Path) -> None:
    model = serve(tmp_path, SVC().fit(FEATURES, SPECIES == 1))

    assert v2(model, {"x": np.array(ROWS)}) == {"output-0": ("BOOL", [True, True])}


def test_several_targets_share_one_output(tmp_path: Path) -> None:
    targets = FEATURES @ np.ones((4, 2)) + [0.0, 1.0]
    estimator = LinearRegression().fit(FEATURES, targets)
    model = serve(tmp_path, estimator)

    assert model.predict({"instances": ROWS}) == {"predictions": estimator.predict(ROWS).tolist()}


def test_probabilities_of_several_targets_are_an_output_each(tmp_path: Path) -> None:
    targets = np.column_stack([SPECIES, SPECIES == 1])
    estimator = RandomForestClassifier(5, random_state=0).fit(FEATURES, targets)
    first, second = (array.tolist() for array in estimator.predict_proba(ROWS))
    model = serve(tmp_path, estimator, method="predict_proba")

    by_default = v2(model, {"x": np.array(ROWS)})
    requested = v2(
        model,
        {"x": np.array(ROWS)},
        request_outputs=[RequestedOutput("predict_proba-1"), RequestedOutput("predict_proba-0")],
    )
    rows = model.predict({"instances": ROWS})

    assert by_default == {"output-0": ("FP64", first), "output-1": ("FP64", second)}
    assert requested == {"predict_proba-0": ("FP64", first), "predict_proba-1": ("FP64", second)}
    assert rows == {
        "predictions": [{"output-0": a, "output-1": b} for a, b in zip(first, second, strict=True)]
    }


def test_sparse_results_are_dense(tmp_path: Path) -> None:
    model = serve(tmp_path, OneHotEncoder().fit([[1], [2], [3]]))

    assert model.predict({"instances": [[2], [3]]}) == {
        "predictions": [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    }


def test_a_frame_is_an_output_for_each_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, 3.0], "b": [0.0, 2.0]})
    scaler = StandardScaler().set_output(transform="pandas").fit(frame)
    model = serve(tmp_path, scaler)

    assert v2(model, {"x": frame.to_numpy()}) == {
        "a": ("FP64", [-1.0, 1.0]),
        "b": ("FP64", [-1.0, 1.0]),
    }
    assert [spec.metadata() for spec in model.signature.outputs] == [
        {"name": "a", "datatype": "FP64", "shape": [-1]},
        {"name": "b", "datatype": "FP64", "shape": [-1]},
    ]


def test_names_reach_inner_steps_that_pass_frames_on(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, 3.0, 5.0], "b": [0.0, 2.0, 1.0]})
    picks_b = ColumnTransformer([("b", "passthrough", ["b"])])
    estimator = make_pipeline(
        StandardScaler().set_output(transform="pandas"), picks_b, LinearRegression()
    ).fit(frame, [1.0, 2.0, 3.0])
    model = serve(tmp_path, estimator)

    answer = model.predict({"instances": frame.to_numpy().tolist()})

    assert answer == {"predictions": pytest.approx(estimator.predict(frame).tolist())}


def test_estimators_inside_of_a_named_one_do_not_warn(tmp_path: Path) -> None:
    features, species = load_iris(return_X_y=True, as_frame=True)
    estimator = VotingClassifier(
        [("svc", SVC(random_state=0)), ("tree", DecisionTreeClassifier(random_state=0))]
    ).fit(features, species)
    model = serve(tmp_path, estimator)

    assert model.predict({"instances": ROWS}) == {"predictions": [1, 1]}


@pytest.mark.parametrize("binary", [False, True], ids=["str", "bytes"])
def test_serves_a_text_pipeline(tmp_path: Path, binary: bool) -> None:
    texts = ["good film", "bad film", "good book", "bad book"]
    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [1, 0, 1, 0])
    model = serve(tmp_path, estimator)
    elements = text(*(each.encode() if binary else each for each in texts))

    assert v2(model, {"x": elements}) == {"output-0": ("INT64", [1, 0, 1, 0])}
    assert v2(model, {"x": elements.reshape(-1, 1)}) == {"output-0": ("INT64", [1, 0, 1, 0])}
    assert model.predict({"instances": texts}) == {"predictions": [1, 0, 1, 0]}


def test_rejects_text_that_is_not_utf8(tmp_path: Path) -> None:
    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(["a b", "cd"], [1, 0])
    model = serve(tmp_path, estimator)

    with pytest.raises(InvalidInput, match="input 'input-0': expected UTF-8 text"):
        v2(model, {"x": text(b"\xff")})


def test_rejects_null_among_the_texts_of_a_vectorizer(tmp_path: Path) -> None:
    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(["a b", "cd"], [1, 0])
    model = serve(tmp_path, estimator)

    with pytest.raises(InvalidInput) as caught:
        model.predict({"instances": ["ab", None]})

    assert caught.value.reason == (
        "input 'input-0': expected text, got null at 1, null is not allowed"
    )


def test_passes_anything_on_to_an_estimator_that_tells_nothing(tmp_path: Path) -> None:
    estimator = FunctionTransformer(np.log1p)
    model = serve(tmp_path, estimator)

    assert model.signature.inputs == ()
    assert v2(model, {"x": np.array([[0.0], [1.0]])}) == {
        "output-0": ("FP64", [[0.0], [float(np.log1p(1.0))]])
    }
    assert v2(model, {"a": np.array([0.0]), "b": np.array([1.0])}) == {
        "a": ("FP64", [0.0]),
        "b": ("FP64", [float(np.log1p(1.0))]),
    }


def test_rows_reach_a_dict_vectorizer(tmp_path: Path) -> None:
    rows = [{"city": "Ghent", "area": 50.0}, {"city": "Bruges", "area": 80.0}]
    estimator = make_pipeline(DictVectorizer(), LinearRegression()).fit(rows, [1.0, 2.0])
    model = serve(tmp_path, estimator)

    answer = model.predict({"instances": rows})

    assert answer == {"predictions": estimator.predict(rows).tolist()}


@pytest.mark.parametrize("method", ["predict_proba", "decision_function"])
def test_the_parameter_method_overrides(tmp_path: Path, method: str) -> None:
    estimator = LogisticRegression(max_iter=500).fit(FEATURES, SPECIES)
    model = serve(tmp_path, estimator)

    answer = v2(model, {"x": np.array(ROWS)}, parameters={"method": method})

    assert answer == {"output-0": ("FP64", getattr(estimator, method)(ROWS).tolist())}


@pytest.mark.parametrize("method", ["transform", "fit", "__class__", 5, None])
def test_rejects_a_method_that_the_model_lacks(tmp_path: Path, method: Any) -> None:
    model = serve(tmp_path, SVC().fit(FEATURES, SPECIES))

    with pytest.raises(InvalidInput) as caught:
        v2(model, {"x": np.array(ROWS)}, parameters={"method": method})

    assert str(caught.value) == (
        f"parameter 'method': the model has no method {method!r}, it has predict, decision_function"
    )


def test_other_methods_come_beside_the_prediction_on_request(tmp_path: Path) -> None:
    estimator = LogisticRegression(max_iter=500).fit(FEATURES, SPECIES)
    model = serve(tmp_path, estimator)
    requested = [RequestedOutput(name) for name in ("output-0", "predict_proba", "predict")]

    answer = v2(model, {"x": np.array(ROWS)}, request_outputs=requested)

    assert answer == {
        "output-0": ("INT64", [1, 1]),
        "predict_proba": ("FP64", estimator.predict_proba(ROWS).tolist()),
        "predict": ("INT64", [1, 1]),
    }


def test_rejects_an_output_that_the_model_lacks(tmp_path: Path) -> None:
    model = serve(tmp_path, SVC().fit(FEATURES, SPECIES))

    with pytest.raises(InvalidInput, match="has 'output-0', 'predict', 'decision_function'"):
        v2(model, {"x": np.array(ROWS)}, request_outputs=[RequestedOutput("transform")])


def test_rejects_a_wrong_number_of_features(tmp_path: Path) -> None:
    model = serve(tmp_path, SVC().fit(FEATURES, SPECIES))

    with pytest.raises(InvalidInput, match=r"expected shape \[-1, 4\], got \[1, 3\]"):
        model.predict({"instances": [[6.8, 2.8, 4.8]]})


def test_values_that_the_estimator_refuses_are_the_clients_fault(tmp_path: Path) -> None:
    model = serve(tmp_path, SVC().fit(FEATURES, SPECIES))

    with pytest.raises(InvalidInput, match="Input X contains NaN"):
        model.predict({"instances": [[6.8, 2.8, 4.8, None]]})


def test_a_transformer_transforms_by_default(tmp_path: Path) -> None:
    model = serve(tmp_path, StandardScaler().fit([[1.0], [3.0]]))

    assert model.predict({"instances": [[3.0]]}) == {"predictions": [[1.0]]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("true", "predict_proba"), ("false", "predict"), ("", "predict")],
)
def test_the_environment_asks_for_probabilities_as_upstream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, expected: str
) -> None:
    monkeypatch.setenv("PREDICT_PROBA", value)
    estimator = LogisticRegression(max_iter=500).fit(FEATURES, SPECIES)
    model = serve(tmp_path, estimator)

    answer = model.predict({"instances": ROWS})

    assert answer == {"predictions": getattr(estimator, expected)(ROWS).tolist()}


def test_an_estimator_without_probabilities_predicts_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREDICT_PROBA", "true")
    model = serve(tmp_path, SVC().fit(FEATURES, SPECIES))

    assert model.predict({"instances": ROWS}) == {"predictions": [1, 1]}


def test_an_explicit_method_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREDICT_PROBA", "true")
    model = serve(
        tmp_path, LogisticRegression(max_iter=500).fit(FEATURES, SPECIES), method="predict"
    )

    assert model.predict({"instances": ROWS}) == {"predictions": [1, 1]}


@pytest.mark.parametrize(
    ("estimator", "method", "reason"),
    [
        pytest.param(
            SVC().fit(FEATURES, SPECIES),
            "transform",
            "has no method transform; it has predict, decision_function",
            id="lacks the method",
        ),
        pytest.param(
            DBSCAN().fit(FEATURES), None, "DBSCAN has only fit_predict", id="only fit_predict"
        ),
        pytest.param(SVC(), None, "SVC is not fitted; save it after fit", id="not fitted"),
        pytest.param(
            make_pipeline(StandardScaler(), SVC()),
            None,
            "SVC is not fitted",
            id="unfitted pipeline",
        ),
        pytest.param(GridSearchCV(SVC(), {}), None, "GridSearchCV is not fitted", id="search"),
        pytest.param(
            TSNE(perplexity=2).fit(FEATURES[:5]),
            None,
            "holds a TSNE, expected an estimator with one of the methods predict, ",
            id="only fits",
        ),
        pytest.param({"a": 1}, None, "dict", id="no estimator"),
    ],
)
def test_refuses_to_load_what_it_cannot_serve(
    tmp_path: Path, estimator: Any, method: str | None, reason: str
) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        serve(tmp_path, estimator, method=method)


def test_an_empty_directory_is_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match="no model file"):
        SKLearnModel("m", str(tmp_path)).load()


def test_refuses_two_artifacts(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").touch()
    (tmp_path / "b.joblib").touch()

    with pytest.raises(RuntimeError, match="More than one model file is detected"):
        SKLearnModel("m", str(tmp_path)).load()


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_loads_any_pickle_only_if_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.delenv("KSERVE_ALLOW_PICKLE", raising=False)
    estimator = FunctionTransformer(os.path.basename)

    with pytest.raises(ModelLoadError, match="refused, because posixpath.basename"):
        serve(tmp_path, estimator)
    if how == "environment":
        monkeypatch.setenv("KSERVE_ALLOW_PICKLE", "true")
    model = serve(tmp_path, estimator, allow_pickle=True if how == "argument" else None)

    assert model.ready


class Jobs(pickle.Pickler):
    """Visits every object that a pickle would hold, and collects each `n_jobs`."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.found: list[Any] = []

    def persistent_id(self, obj: Any) -> None:
        if not isinstance(obj, type) and "n_jobs" in getattr(obj, "__dict__", {}):
            self.found.append(obj.n_jobs)


def jobs_of(model: SKLearnModel) -> list[Any]:
    visitor = Jobs()
    visitor.dump(model._served.methods.calls["predict"].__self__)  # type: ignore[union-attr]
    return visitor.found


def forest() -> RandomForestClassifier:
    return RandomForestClassifier(3, n_jobs=-1)


def one_object_of_an_array() -> Any:
    estimator = GradientBoostingClassifier(n_estimators=1)
    estimator.fit(FEATURES, SPECIES)
    estimator.estimators_[0, 0] = RandomForestRegressor(2, n_jobs=-1).fit(FEATURES, SPECIES)
    return estimator


NESTED = [
    pytest.param(lambda: forest().fit(FEATURES, SPECIES), id="forest"),
    pytest.param(
        lambda: GridSearchCV(make_pipeline(StandardScaler(), forest()), {}, n_jobs=2).fit(
            FEATURES, SPECIES
        ),
        id="search over a pipeline",
    ),
    pytest.param(
        lambda: VotingClassifier([("a", forest()), ("b", SVC())], n_jobs=2).fit(FEATURES, SPECIES),
        id="voting",
    ),
    pytest.param(
        lambda: StackingClassifier([("a", forest())], forest(), n_jobs=2).fit(FEATURES, SPECIES),
        id="stacking",
    ),
    pytest.param(
        lambda: make_pipeline(
            ColumnTransformer([("a", make_union(StandardScaler(), n_jobs=2), [0, 1])], n_jobs=2),
            BaggingClassifier(KNeighborsClassifier(n_jobs=2), 2, n_jobs=2),
        ).fit(FEATURES, SPECIES),
        id="columns, union, bagging, neighbours",
    ),
    pytest.param(
        lambda: CalibratedClassifierCV(forest(), n_jobs=2, cv=2).fit(FEATURES, SPECIES),
        id="calibrated",
    ),
    pytest.param(
        lambda: MultiOutputClassifier(forest(), n_jobs=2).fit(
            FEATURES, np.column_stack([SPECIES, SPECIES])
        ),
        id="several outputs",
    ),
    pytest.param(
        lambda: OneVsRestClassifier(forest(), n_jobs=2).fit(FEATURES, SPECIES), id="one versus rest"
    ),
    pytest.param(one_object_of_an_array, id="an array of estimators"),
]


@pytest.mark.parametrize("make", NESTED)
@pytest.mark.parametrize("n_jobs", [1, 3])
def test_sets_the_jobs_of_every_estimator_inside(
    tmp_path: Path, make: Callable[[], Any], n_jobs: int
) -> None:
    options = {} if n_jobs == 1 else {"n_jobs": n_jobs}
    # To fit in the processes that they ask for takes seconds.
    with joblib.parallel_config("sequential"):
        estimator = make()

    found = jobs_of(serve(tmp_path, estimator, **options))

    assert set(found) == {n_jobs}


def test_one_job_for_each_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kserve.cpu.cpu_count", lambda: 5)

    found = jobs_of(serve(tmp_path, forest().fit(FEATURES, SPECIES), n_jobs=-1))

    assert set(found) == {5}


class Where(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Answers with the process that computes, in a job of its own."""

    def __init__(self, n_jobs: int | None = None) -> None:
        self.n_jobs = n_jobs

    def fit(self, features: Any, labels: Any = None) -> "Where":
        self.n_features_in_ = 1
        return self

    def predict(self, features: Any) -> Any:
        jobs = joblib.Parallel(n_jobs=self.n_jobs)
        return np.array(jobs(joblib.delayed(os.getpid)() for _ in range(len(features))))


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_jobs_are_no_processes(tmp_path: Path, n_jobs: int) -> None:
    model = serve(tmp_path, Where().fit([[0]]), allow_pickle=True, n_jobs=n_jobs)

    answer = model.predict({"instances": [[0], [1], [2]]})

    assert answer == {"predictions": [os.getpid()] * 3}


@pytest.mark.parametrize(
    ("argument", "expected"), [("4", 4), ("-1", -1)], ids=["a number", "all CPUs"]
)
def test_reads_the_number_of_jobs(argument: str, expected: int) -> None:
    parser = argparse.ArgumentParser()
    SKLearnModel.add_arguments(parser)

    assert parser.parse_args(["--n_jobs", argument]).n_jobs == expected
    assert parser.parse_args([]).n_jobs == 1


@pytest.mark.parametrize("argument", ["0", "-2", "many"])
def test_refuses_what_is_no_number_of_jobs(
    argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    SKLearnModel.add_arguments(parser)

    with pytest.raises(SystemExit):
        parser.parse_args(["--n_jobs", argument])

    assert f"expected an integer, 1 or more, got '{argument}'" in capsys.readouterr().err


def test_a_repository_loads_every_directory(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        joblib.dump(SVC().fit(FEATURES, SPECIES), tmp_path / name / "model.joblib")

    repository = SKLearnModelRepository(str(tmp_path))

    assert sorted(repository.get_models()) == ["a", "b"]
    assert asyncio.run(repository.is_model_ready("a"))


def test_a_repository_loads_a_model_later(tmp_path: Path) -> None:
    repository = SKLearnModelRepository(str(tmp_path))
    (tmp_path / "late").mkdir()
    joblib.dump(SVC().fit(FEATURES, SPECIES), tmp_path / "late" / "model.joblib")

    assert asyncio.run(repository.load("late"))
    assert list(repository.get_models()) == ["late"]


def test_a_repository_stays_empty_when_an_absent_model_is_loaded(tmp_path: Path) -> None:
    repository = SKLearnModelRepository(str(tmp_path))

    with pytest.raises(ModelMissingError):
        asyncio.run(repository.load("absent"))

    assert repository.get_models() == {}
    assert not asyncio.run(repository.is_model_ready("absent"))


def test_selects_columns_by_dtype_as_at_fit(tmp_path: Path) -> None:
    frame = HOUSES[["area", "city"]].fillna({"area": 0.0, "city": "Ghent"})
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), make_column_selector(dtype_include=float)),
            ("texts", OneHotEncoder(), make_column_selector(dtype_exclude=float)),
        ]
    )
    estimator = make_pipeline(columns, LinearRegression()).fit(frame, PRICES)
    model = serve(tmp_path, estimator)

    answer = model.predict({"instances": frame.to_dict(orient="records")})

    assert answer == {"predictions": pytest.approx(estimator.predict(frame).tolist())}


def test_columns_of_booleans_are_numbers(tmp_path: Path) -> None:
    frame = HOUSES[["floor"]].assign(has_garden=[True, False, True, True, False, True])
    estimator = LinearRegression().fit(frame, PRICES)
    model = serve(tmp_path, estimator)

    answer = model.predict({"instances": [{"floor": 1, "has_garden": True}]})

    expected = estimator.predict(frame.head(1))
    assert answer == {"predictions": expected.tolist()}


def test_the_warm_up_knows_the_categories_of_an_encoder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)
    encoder = ColumnTransformer([("city", OneHotEncoder(handle_unknown="error"), ["city"])])
    cities = HOUSES[["city"]].dropna()
    model = serve(tmp_path, make_pipeline(encoder, LinearRegression()).fit(cities, PRICES[:5]))

    warm_up(model)

    assert [record.getMessage() for record in caplog.records if record.levelno > 20] == []
