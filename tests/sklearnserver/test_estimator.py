from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, StackingClassifier, VotingClassifier
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
    TargetEncoder,
)
from sklearn.tree import DecisionTreeClassifier

from kserve.signature import TensorSpec
from sklearnserver.estimator import describe
from sklearnserver.features import anything
from sklearnserver.results import normalize, to_tensors

NUMBERS = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "b": [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]})
MIXED = NUMBERS.assign(c=["x", "y", "x", "y", "x", "y"])
TEXTS = ["good film", "bad film", "good book", "bad book", "good play", "bad play"]
LABELS = [0, 1, 0, 1, 0, 1]


def datatypes(estimator: Any) -> dict[str, str]:
    inputs = describe(estimator, None, "m").signature.inputs
    return {spec.name: spec.datatype + ("" if spec.exact else "?") for spec in inputs}


def specs(listed: tuple[TensorSpec, ...]) -> list[tuple[str, str, list[int]]]:
    return [(spec.name, spec.datatype, list(spec.shape)) for spec in listed]


def test_describes_a_classifier_on_an_array() -> None:
    served = describe(LogisticRegression().fit(NUMBERS.to_numpy(), LABELS), None, "m")

    assert specs(served.signature.inputs) == [("input-0", "FP64", [-1, 2])]
    assert specs(served.signature.outputs) == [("output-0", "INT64", [-1])]
    assert specs(served.signature.optional_outputs) == [
        ("predict", "INT64", [-1]),
        ("predict_proba", "FP64", [-1, 2]),
        ("predict_log_proba", "FP64", [-1, 2]),
        ("decision_function", "FP64", [-1]),
    ]
    assert not served.signature.is_table


def test_describes_named_features_as_a_table() -> None:
    served = describe(PCA(1).fit(NUMBERS), None, "m")

    assert specs(served.signature.inputs) == [("a", "FP64", [-1]), ("b", "FP64", [-1])]
    assert specs(served.signature.outputs) == [("output-0", "FP64", [-1, 1])]
    assert specs(served.signature.optional_outputs) == [
        ("transform", "FP64", [-1, 1]),
        ("score_samples", "FP64", [-1]),
    ]
    assert served.signature.is_table


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        pytest.param(LABELS, ("output-0", "INT64", [-1]), id="int"),
        pytest.param(np.array(LABELS, np.int8), ("output-0", "INT8", [-1]), id="int8"),
        pytest.param([bool(label) for label in LABELS], ("output-0", "BOOL", [-1]), id="bool"),
        pytest.param([f"is {label}" for label in LABELS], ("output-0", "BYTES", [-1]), id="str"),
        pytest.param(np.array(TEXTS, object), ("output-0", "BYTES", [-1]), id="object"),
        pytest.param(np.array([LABELS, LABELS]).T, ("output-0", "INT64", [-1, 2]), id="targets"),
    ],
)
def test_the_output_has_the_datatype_of_the_labels(
    labels: Any, expected: tuple[str, str, list[int]]
) -> None:
    served = describe(DecisionTreeClassifier().fit(NUMBERS, labels), None, "m")

    assert specs(served.signature.outputs) == [expected]


def test_a_column_transformer_tells_the_datatype_of_each_column() -> None:
    estimator = ColumnTransformer(
        [
            ("number", StandardScaler(), ["a"]),
            ("text", OneHotEncoder(), ["c"]),
        ],
        remainder="passthrough",
    ).fit(MIXED)

    assert datatypes(estimator) == {"a": "FP64", "b": "FP64?", "c": "BYTES"}


@pytest.mark.parametrize(
    "selection",
    [
        pytest.param(["c"], id="names"),
        pytest.param([2], id="positions"),
        pytest.param([-1], id="positions from the end"),
        pytest.param(slice("c", None), id="slice of names"),
        pytest.param(slice(2, 3), id="slice of positions"),
        pytest.param([False, False, True], id="mask"),
        pytest.param(lambda frame: ["c"], id="callable"),
    ],
)
def test_columns_can_be_selected_in_every_way(selection: Any) -> None:
    estimator = ColumnTransformer([("text", OneHotEncoder(), selection)]).fit(MIXED)

    assert datatypes(estimator) == {"a": "FP64?", "b": "FP64?", "c": "BYTES"}


@pytest.mark.parametrize(
    ("transformer", "expected"),
    [
        pytest.param(OrdinalEncoder(), "BYTES", id="encoder"),
        pytest.param(TargetEncoder(cv=2), "BYTES", id="target encoder"),
        pytest.param(SimpleImputer(strategy="most_frequent"), "BYTES", id="imputer"),
        pytest.param(
            make_pipeline(SimpleImputer(strategy="constant", fill_value="?"), OneHotEncoder()),
            "BYTES",
            id="pipeline",
        ),
        pytest.param("passthrough", "FP64?", id="passthrough"),
        pytest.param("drop", "FP64?", id="drop"),
        pytest.param(FunctionTransformer(np.asarray), "FP64?", id="function"),
        pytest.param(FeatureUnion([("one", OneHotEncoder())]), "BYTES", id="union"),
    ],
)
def test_transformers_tell_the_datatype_of_text_columns(transformer: Any, expected: str) -> None:
    estimator = ColumnTransformer([("t", transformer, ["c"]), ("n", "passthrough", ["a"])])

    assert datatypes(estimator.fit(MIXED, LABELS))["c"] == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([1, 2, 1], "FP64", id="int"),
        pytest.param([1.5, np.nan, 1.5], "FP64", id="float"),
        pytest.param([True, False, True], "FP64?", id="bool"),
        pytest.param(["x", None, "y"], "BYTES", id="text and None"),
        pytest.param(["x", np.nan, "y"], "BYTES", id="text and NaN"),
        pytest.param([None, None, None], "FP64?", id="only None"),
    ],
)
def test_categories_tell_the_datatype(values: list[Any], expected: str) -> None:
    frame = pd.DataFrame({"c": pd.Series(values, dtype=None if None not in values else object)})

    assert datatypes(OneHotEncoder().fit(frame)) == {"c": expected}


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(CountVectorizer(), id="counts"),
        pytest.param(HashingVectorizer(n_features=8), id="hashes"),
        pytest.param(make_pipeline(TfidfVectorizer(), LogisticRegression()), id="pipeline"),
        pytest.param(
            make_pipeline("passthrough", TfidfVectorizer(), LogisticRegression()), id="passthrough"
        ),
        pytest.param(
            Pipeline([("all", Pipeline([("text", TfidfVectorizer())]))]), id="nested pipeline"
        ),
        pytest.param(
            FeatureUnion([("a", CountVectorizer()), ("b", TfidfVectorizer())]), id="union"
        ),
        pytest.param(
            GridSearchCV(make_pipeline(TfidfVectorizer(), LogisticRegression()), {}, cv=2),
            id="search",
        ),
        pytest.param(
            VotingClassifier([("a", make_pipeline(TfidfVectorizer(), LogisticRegression()))]),
            id="voting",
        ),
        pytest.param(
            CalibratedClassifierCV(make_pipeline(TfidfVectorizer(), LogisticRegression()), cv=2),
            id="calibrated",
        ),
    ],
)
def test_a_vectorizer_first_takes_texts(estimator: Any) -> None:
    served = describe(estimator.fit(TEXTS, LABELS), None, "m")

    assert specs(served.signature.inputs) == [("input-0", "BYTES", [-1])]


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda inner: GridSearchCV(inner, {}, cv=2), id="search"),
        pytest.param(lambda inner: VotingClassifier([("a", inner)]), id="voting"),
        pytest.param(lambda inner: StackingClassifier([("a", inner)], cv=2), id="stacking"),
        pytest.param(lambda inner: CalibratedClassifierCV(inner, cv=2), id="calibrated"),
        pytest.param(OneVsRestClassifier, id="one against the rest"),
        pytest.param(
            lambda inner: TransformedTargetRegressor(inner, check_inverse=False), id="target"
        ),
    ],
)
def test_wrappers_take_the_columns_of_what_they_wrap(wrap: Any) -> None:
    encoder = ColumnTransformer([("text", OneHotEncoder(), ["c"]), ("n", StandardScaler(), ["a"])])
    inner = make_pipeline(encoder, LogisticRegression())
    estimator = wrap(inner).fit(MIXED, LABELS)
    served = describe(estimator, None, "m")

    answer = served.methods.calls["predict"](
        served.make_features(
            {name: MIXED[name].to_numpy(dtype=object if name == "c" else None) for name in MIXED}
        )
    )

    assert datatypes(estimator) == {"a": "FP64", "b": "FP64?", "c": "BYTES"}
    assert answer.tolist() == estimator.predict(MIXED).tolist()


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda inner: GridSearchCV(inner, {}, cv=2), id="search"),
        pytest.param(lambda inner: VotingClassifier([("a", inner)]), id="voting"),
        pytest.param(lambda inner: StackingClassifier([("a", inner)], cv=2), id="stacking"),
        pytest.param(lambda inner: CalibratedClassifierCV(inner, cv=2), id="calibrated"),
        pytest.param(OneVsRestClassifier, id="one against the rest"),
        pytest.param(lambda inner: make_pipeline(StandardScaler(), inner), id="pipeline"),
        pytest.param(
            lambda inner: make_pipeline(FeatureUnion([("a", StandardScaler())]), inner), id="union"
        ),
    ],
)
def test_an_array_reaches_estimators_fitted_on_names_without_a_warning(wrap: Any) -> None:
    estimator = wrap(GaussianNB()).fit(NUMBERS, LABELS)
    expected = estimator.predict(NUMBERS).tolist()
    served = describe(estimator, None, "m")

    features = served.make_features({"x": NUMBERS.to_numpy()})
    answer = served.methods.calls["predict"](features)

    assert isinstance(features, np.ndarray)
    assert answer.tolist() == expected


def test_an_unnamed_table_of_texts_is_one_bytes_input() -> None:
    served = describe(OneHotEncoder().fit(np.array([["x", "u"], ["y", "v"]], object)), None, "m")

    features = served.make_features({"input-0": np.array([["x", b"v"]], object)})

    assert specs(served.signature.inputs) == [("input-0", "BYTES", [-1, 2])]
    assert served.methods.calls["transform"](features).toarray().tolist() == [[1.0, 0.0, 0.0, 1.0]]


def test_an_unnamed_table_of_mixed_columns_has_an_input_for_each() -> None:
    table = MIXED[["a", "c"]].to_numpy(dtype=object)
    estimator = ColumnTransformer([("t", OneHotEncoder(), [1]), ("n", StandardScaler(), [0])])
    served = describe(estimator.fit(table), None, "m")

    features = served.make_features({"x0": np.array([3.5]), "x1": np.array(["y"], object)})

    assert specs(served.signature.inputs) == [("x0", "FP64", [-1]), ("x1", "BYTES", [-1])]
    assert served.methods.calls["transform"](features).tolist() == [[0.0, 1.0, 0.0]]


def test_text_reaches_a_model_of_pandas_categories() -> None:
    frame = NUMBERS.assign(c=pd.Categorical(["x", "y"] * 3))[["a", "c"]]
    estimator = HistGradientBoostingClassifier(
        categorical_features="from_dtype", min_samples_leaf=1
    ).fit(pd.concat([frame] * 5), LABELS * 5)
    served = describe(estimator, None, "m")

    features = served.make_features(
        {"a": frame["a"].to_numpy(), "c": frame["c"].to_numpy(dtype=object)}
    )

    assert datatypes(estimator) == {"a": "FP64", "c": "FP64?"}
    assert served.methods.calls["predict"](features).tolist() == LABELS


def test_an_estimator_that_tells_no_features_has_no_inputs() -> None:
    served = describe(FunctionTransformer(np.log1p), None, "m")

    assert served.signature.inputs == ()
    assert specs(served.signature.outputs) == [("output-0", "FP64", [-1, -1])]


def test_outputs_are_guessed_where_no_row_can_be_invented() -> None:
    estimator = make_pipeline(FunctionTransformer(np.asarray), DecisionTreeClassifier())
    estimator.fit(np.array([[1.0], [2.0]]).tolist(), ["no", "yes"])
    estimator.steps[0] = ("refuse", FunctionTransformer(np.linalg.inv))
    estimator.steps[1][1].n_features_in_ = 1

    served = describe(estimator, None, "m")

    assert specs(served.signature.outputs) == [("output-0", "BYTES", [-1])]
    assert specs(served.signature.optional_outputs) == [
        ("predict", "BYTES", [-1]),
        ("predict_proba", "FP64", [-1, 2]),
        ("predict_log_proba", "FP64", [-1, 2]),
    ]


def test_a_trial_uses_categories_that_the_encoder_knows() -> None:
    estimator = make_pipeline(OneHotEncoder(), KMeans(2, n_init=1)).fit(MIXED[["b", "c"]])

    served = describe(estimator, "transform", "m")

    assert specs(served.signature.outputs) == [("output-0", "FP64", [-1, 2])]


def test_a_trial_uses_categories_that_follow_an_imputer() -> None:
    encode = make_pipeline(
        SimpleImputer(strategy="constant", fill_value="never seen"), OneHotEncoder()
    )

    served = describe(encode.fit(MIXED[["c"]]), None, "m")

    assert specs(served.signature.outputs) == [("output-0", "FP64", [-1, 2])]


@pytest.mark.parametrize(
    ("array", "dtype", "expected"),
    [
        pytest.param(np.array(["a", "b"]), "O", ["a", "b"], id="unicode"),
        pytest.param(np.array([b"a"]), "O", [b"a"], id="bytes"),
        pytest.param(np.array(["a", b"b"], object), "O", ["a", b"b"], id="objects of text"),
        pytest.param(np.array([1, 2], object), "int64", [1, 2], id="objects of integers"),
        pytest.param(np.array([1, 2.5], object), "float64", [1.0, 2.5], id="objects of numbers"),
        pytest.param(np.array([True, False], object), "bool", [True, False], id="objects of bool"),
        pytest.param(np.array(["a", 1.5], object), "O", ["a", "1.5"], id="text and numbers"),
        pytest.param(np.array(["2024-02-29"], "M8[D]"), "O", ["2024-02-29"], id="dates"),
        pytest.param(
            np.array([pd.Timestamp("2024-02-29 12:00")], object),
            "O",
            ["2024-02-29T12:00:00"],
            id="objects of dates",
        ),
        pytest.param(np.array([1.5], np.longdouble), "float64", [1.5], id="long double"),
        pytest.param(np.array([[1], ["a"]], object), "O", [["1"], ["a"]], id="two axes"),
    ],
)
def test_results_get_a_dtype_that_a_datatype_carries(
    array: np.ndarray[Any, Any], dtype: str, expected: list[Any]
) -> None:
    normalized = normalize(array)

    assert normalized.dtype == np.dtype(dtype)
    assert normalized.tolist() == expected


def test_objects_with_a_missing_number_are_floats() -> None:
    normalized = normalize(np.array([1, None], object))

    np.testing.assert_array_equal(normalized, [1.0, np.nan])


def test_a_list_is_one_output() -> None:
    tensors = to_tensors([1, 2], "output-0", "output")

    assert {name: array.tolist() for name, array in tensors.items()} == {"output-0": [1, 2]}


def test_inputs_without_a_signature_must_be_columns_of_equal_length() -> None:
    with pytest.raises(ValueError, match="equal numbers of rows"):
        anything({"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(ValueError, match="equal numbers of rows"):
        anything({})
    with pytest.raises(
        ValueError, match=r"input 'a': expected a column, shape \[-1\], got \[2, 2\]"
    ):
        anything({"a": np.zeros((2, 2)), "b": np.zeros(2)})
