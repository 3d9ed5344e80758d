"""What a payload holds for a model, and the response to it."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from kserve.errors import InferenceError, InvalidInput
from kserve.payload import get_predict_input, get_predict_response
from kserve.protocol.infer_type import InferInput, InferRequest, InferResponse, RequestedOutput


def request(*inputs: InferInput, **arguments: Any) -> InferRequest:
    return InferRequest("m", list(inputs), "7", **arguments)


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        pytest.param([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]]), id="integers"),
        pytest.param([[1, 2.5]], np.array([[1, 2.5]]), id="floats"),
        pytest.param([], np.array([]), id="empty"),
        pytest.param([1.5], np.array([1.5]), id="flat"),
        pytest.param([[[1]], [[2]]], np.array([[[1]], [[2]]]), id="three axes"),
        pytest.param([[1, "a"]], np.array([[1, "a"]], dtype=object), id="mixed"),
        pytest.param([np.array([1, 2])], np.array([[1, 2]]), id="rows as arrays"),
    ],
)
@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_v1_rows_become_an_array(key: str, instances: list[Any], expected: np.ndarray) -> None:
    result = get_predict_input({key: instances})

    np.testing.assert_array_equal(result, expected, strict=True)


def test_v1_texts_stay_a_list() -> None:
    instances = ["a", "b"]

    assert get_predict_input({"instances": instances}) is instances


@pytest.mark.parametrize(
    "instances", [np.ones((1, 2)), pd.DataFrame({"a": [1]})], ids=["array", "frame"]
)
def test_what_preprocess_returns_is_kept(instances: Any) -> None:
    assert get_predict_input({"instances": instances}) is instances


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        pytest.param(
            [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], {"a": [1, 2], "b": ["x", "y"]}, id="rows"
        ),
        pytest.param([[{"a": 1}, {"a": 2}], [{"a": 3}]], {"a": [1, 2, 3]}, id="lists of rows"),
        pytest.param(
            [{"a": [1, 2], "b": [3, 4]}, {"a": [5], "b": [6]}],
            {"a": [1, 2, 5], "b": [3, 4, 6]},
            id="columns as lists",
        ),
        pytest.param(
            [{"a": {"0": 1}, "b": {"0": 2}}, {"a": {"0": 3}, "b": {"0": 4}}],
            {"a": [1, 3], "b": [2, 4]},
            id="columns by index",
        ),
    ],
)
def test_v1_objects_become_one_dataframe(
    instances: list[Any], expected: dict[str, list[Any]]
) -> None:
    frame = get_predict_input({"instances": instances})

    assert isinstance(frame, pd.DataFrame)
    assert frame.to_dict(orient="list") == expected


def test_v1_objects_take_the_order_of_the_columns() -> None:
    frame = get_predict_input({"instances": [{"a": 1, "b": 2, "c": 3}]}, columns=["c", "a"])

    assert isinstance(frame, pd.DataFrame)
    assert frame.to_dict(orient="split", index=False) == {"columns": ["c", "a"], "data": [[3, 1]]}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(
            {}, 'expected "instances" or "inputs" in the payload, got neither', id="neither key"
        ),
        pytest.param({"instances": 1}, 'expected "instances" to be a list, got int', id="no list"),
        pytest.param(
            {"instances": [[1], [2, 3]]},
            "expected rows of equal length, got ragged rows",
            id="ragged",
        ),
        pytest.param(
            {"instances": [{"a": 1}, 2]},
            "expected each row to be an object, got rows of types ['dict', 'int']",
            id="mixed rows",
        ),
        pytest.param(
            {"instances": [{"a": [1], "b": [1, 2]}]},
            "expected columns of equal length in each object",
            id="ragged columns",
        ),
        pytest.param(
            b"raw",
            "unsupported payload type bytes, expected a JSON object or a V2 request",
            id="bytes",
        ),
        pytest.param(request(), "expected at least one input, got none", id="no inputs"),
        pytest.param(
            request(InferInput("a", [1], "INT8", [1]), InferInput("b", [1, 2], "INT8", [1, 2])),
            "input 'b': expected a column of shape [n] or [n, 1], got [1, 2]",
            id="several inputs, no columns",
        ),
    ],
)
def test_payload_that_holds_no_input_is_refused(payload: Any, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        get_predict_input(payload)

    assert caught.value.reason.startswith(reason)


def test_v2_input_becomes_its_array() -> None:
    result = get_predict_input(request(InferInput("a", [1, 2], "FP32", [1, 2])))

    np.testing.assert_array_equal(result, np.array([[1, 2]], np.float32), strict=True)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        pytest.param(InferInput("a", [2], "BYTES", ["x", "y"]), ["x", "y"], id="str"),
        pytest.param(InferInput("a", [2, 1], "BYTES", [b"x", b"y"]), ["x", "y"], id="one column"),
        pytest.param(
            InferInput("a", [1, 2], "BYTES", ["x", b"y"]),
            np.array([["x", "y"]], dtype=object),
            id="matrix",
        ),
        pytest.param(
            InferInput("a", [1], "BYTES", [b"\xff"]), np.array([b"\xff"], dtype=object), id="bytes"
        ),
        pytest.param(InferInput("a", [0], "BYTES", []), np.array([], dtype=object), id="empty"),
    ],
)
def test_v2_text_becomes_a_list_of_str(tensor: InferInput, expected: Any) -> None:
    result = get_predict_input(request(tensor))

    assert type(result) is type(expected)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        pytest.param(
            request(InferInput("a", [2], "INT8", [1, 2]), parameters={"content_type": "pd"}),
            {"a": [1, 2]},
            id="content_type",
        ),
        pytest.param(
            request(InferInput("a", [1], "INT8", [1]), InferInput("b", [1, 1], "BYTES", ["x"])),
            {"a": [1], "b": ["x"]},
            id="several columns",
        ),
    ],
)
def test_v2_columns_become_a_dataframe(
    payload: InferRequest, expected: dict[str, list[Any]]
) -> None:
    frame = get_predict_input(payload)

    assert isinstance(frame, pd.DataFrame)
    assert frame.to_dict(orient="list") == expected


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        pytest.param(np.array([[1, 2]]), [[1, 2]], id="array"),
        pytest.param(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), None, id="frame"),
        pytest.param([1, "a"], [1, "a"], id="list"),
    ],
)
def test_v1_response_holds_predictions(result: Any, expected: Any) -> None:
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]

    response = get_predict_response({"instances": []}, result, "m")

    assert response == {"predictions": rows if expected is None else expected}


@pytest.mark.parametrize(
    ("result", "outputs"),
    [
        pytest.param(
            np.array([[1, 2], [3, 4]]), [("output-0", [2, 2], "INT64", [1, 2, 3, 4])], id="array"
        ),
        pytest.param([0.5, 1], [("output-0", [2], "FP64", [0.5, 1.0])], id="list"),
        pytest.param(["a", "b"], [("output-0", [2], "BYTES", ["a", "b"])], id="strings"),
        pytest.param(np.array(["a"]), [("output-0", [1], "BYTES", ["a"])], id="unicode array"),
        pytest.param(
            pd.DataFrame({"a": [1.5], 1: ["x"]}),
            [("a", [1], "FP64", [1.5]), ("1", [1], "BYTES", ["x"])],
            id="frame",
        ),
    ],
)
def test_v2_response_holds_outputs(result: Any, outputs: list[Any]) -> None:
    response = get_predict_response(request(), result, "m")

    assert isinstance(response, InferResponse)
    assert (response.id, response.model_name) == ("7", "m")
    assert [
        (output.name, output.shape, output.datatype, output.data) for output in response.outputs
    ] == outputs


def test_v2_response_keeps_the_wishes_of_the_request() -> None:
    wishes = request(
        parameters={"binary_data_output": True},
        request_outputs=[RequestedOutput("output-0")],
    )

    response = get_predict_response(wishes, np.array([1], np.float16), "m")

    assert isinstance(response, InferResponse)
    head = (
        b'{"id":"7","model_name":"m","model_version":null,"outputs":[{"name":"output-0",'
        b'"shape":[1],"datatype":"FP16","parameters":{"binary_data_size":2}}]}'
    )
    assert response.to_rest() == (head + b"\x00<", len(head))


def test_v2_response_to_a_request_without_id_gets_one() -> None:
    response = get_predict_response(InferRequest("m", []), [1], "m")

    assert isinstance(response, InferResponse)
    assert response.id is not None
    assert len(response.id) == 36


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        pytest.param([[1], [2, 3]], "the model's result is ragged", id="ragged"),
        pytest.param(
            np.array([1j]),
            "output 'output-0': no datatype of the protocol holds complex128",
            id="complex",
        ),
    ],
)
def test_result_that_the_protocol_cannot_carry_is_the_models_error(
    result: Any, reason: str
) -> None:
    with pytest.raises(InferenceError) as caught:
        get_predict_response(request(), result, "m")

    assert caught.value.reason.startswith(reason)


def test_response_to_a_foreign_payload_is_refused() -> None:
    with pytest.raises(InvalidInput, match="unsupported payload type bytes"):
        get_predict_response(b"raw", [1], "m")  # type: ignore[arg-type]
