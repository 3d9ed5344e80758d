"""What sklearnserver promises for a classifier on named columns, as a client sees it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conformance.servers import RunningServer

FEATURES = ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"]
ROW = [5.1, 3.5, 1.4, 0.2]


@pytest.fixture
def iris(running_server: "Callable[[str], RunningServer]") -> "RunningServer":
    return running_server("sklearnserver")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"Content-Type": "application/x-www-form-urlencoded"}, id="curl's default"),
        pytest.param({"Content-Type": "application/json; charset=utf-8"}, id="with a charset"),
    ],
)
def test_any_content_type_of_curl_gives_the_class(
    iris: "RunningServer", headers: dict[str, str]
) -> None:
    response = iris.request("POST", "/v1/models/iris:predict", {"instances": [ROW]}, headers)

    assert (response.status, response.body) == (200, b'{"predictions":[0]}')


def test_v1_says_that_four_features_were_expected(iris: "RunningServer") -> None:
    body = {"instances": [[5.1, 3.5, 1.4]]}

    response = iris.request("POST", "/v1/models/iris:predict", body)

    assert response.status == 400
    assert "expected 4 values" in response.json()["error"]
    assert "got 3" in response.json()["error"]


def test_v2_says_that_four_features_were_expected(iris: "RunningServer") -> None:
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP64", "data": [5.1, 3.5, 1.4]}

    response = iris.request("POST", "/v2/models/iris/infer", {"inputs": [tensor]})

    assert response.status == 400
    assert response.json() == {"error": "input 'x': expected shape [-1, 4], got [1, 3]"}


def test_metadata_names_the_four_features_and_the_output(iris: "RunningServer") -> None:
    metadata = iris.request("GET", "/v2/models/iris").json()

    assert [tensor["name"] for tensor in metadata["inputs"]] == FEATURES
    assert metadata["outputs"] == [{"name": "output-0", "datatype": "INT64", "shape": [-1]}]
    assert metadata["platform"] == "sklearn"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"instances": [dict(zip(FEATURES, ROW, strict=True))]}, id="row as object"),
        pytest.param(
            {"inputs": {name: [value] for name, value in zip(FEATURES, ROW, strict=True)}},
            id="columns",
        ),
        pytest.param({"inputs": [ROW]}, id="rows under inputs"),
        pytest.param({"instances": [ROW], "signature_name": "x"}, id="more fields"),
    ],
)
def test_v1_reads_every_form_of_a_row(iris: "RunningServer", body: dict[str, Any]) -> None:
    response = iris.request("POST", "/v1/models/iris:predict", body)

    assert (response.status, response.json()) == (200, {"predictions": [0]})


def test_v2_reads_one_tensor_for_each_column_in_any_order(iris: "RunningServer") -> None:
    tensors = [
        {"name": name, "shape": [1], "datatype": "FP32", "data": [value]}
        for name, value in zip(FEATURES, ROW, strict=True)
    ]

    response = iris.request("POST", "/v2/models/iris/infer", {"inputs": tensors[::-1]})

    assert response.status == 200
    assert response.json()["outputs"][0]["data"] == [0]


def test_v2_names_the_column_that_is_missing(iris: "RunningServer") -> None:
    tensors = [
        {"name": name, "shape": [1], "datatype": "FP64", "data": [1.0]} for name in FEATURES[1:]
    ]

    response = iris.request("POST", "/v2/models/iris/infer", {"inputs": tensors})

    assert response.status == 400
    assert response.json()["error"].endswith("missing 'sepal length (cm)'")
