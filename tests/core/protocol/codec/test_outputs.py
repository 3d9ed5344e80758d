"""Outputs that disagree with themselves, in each form of an answer."""

from typing import Any

import numpy as np
import pytest

from kserve.errors import InferenceError
from kserve.protocol.codec import v1_json, v2_binary, v2_json
from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse

FAULTY = [
    pytest.param(
        ([2], "FP32", [1.0, 2.0, 3.0]),
        "output 'y': expected as many elements as shape [2] holds, got 3",
        id="more values than the shape holds",
    ),
    pytest.param(
        ([1], "FLOAT", [1.0]), "output 'y': unknown datatype 'FLOAT'", id="unknown datatype"
    ),
    pytest.param(([1], "FP32", None), "output 'y': 'data' is missing", id="no data"),
    pytest.param(
        ([1], "INT64", np.array([np.nan])),
        "output 'y': a value is not a whole number in the range of INT64",
        id="NaN in integers",
    ),
    pytest.param(
        ([1], "INT8", [300]), "output 'y': a value is out of range for INT8", id="out of range"
    ),
    pytest.param(([1], "BOOL", [2]), "output 'y': a value is not a whole number", id="2 in BOOL"),
]


@pytest.mark.parametrize(("content", "reason"), FAULTY)
@pytest.mark.parametrize(
    "encode",
    [
        pytest.param(v1_json.encode_response, id="V1"),
        pytest.param(v2_json.encode, id="V2 JSON"),
    ],
)
def test_a_faulty_output_is_the_models_fault(encode: Any, content: Any, reason: str) -> None:
    response = InferResponse("1", "m", [InferOutput("y", *content)])

    with pytest.raises(InferenceError) as caught:
        encode(response)

    assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize(("content", "reason"), FAULTY)
def test_a_faulty_output_in_binary_form_is_the_models_fault(content: Any, reason: str) -> None:
    response = InferResponse("1", "m", [InferOutput("y", *content)])
    request = InferRequest("m", [], parameters={"binary_data_output": True})

    with pytest.raises(InferenceError) as caught:
        v2_binary.encode(response, request)

    assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize(
    ("array", "datatype", "expected"),
    [
        pytest.param(
            np.ma.masked_array([0.5, 7.0], [False, True]), "FP64", b"[0.5,null]", id="masked floats"
        ),
        pytest.param(np.ma.masked_array([1, 2]), "INT64", b"[1,2]", id="nothing masked"),
        pytest.param(np.array([[1, 2]]).view(np.matrix), "INT64", b"[1,2]", id="matrix"),
        pytest.param(
            np.array(["2020-01-02", "NaT"], "M8[D]"), "BYTES", b'["2020-01-02","NaT"]', id="dates"
        ),
    ],
)
def test_v2_data_is_flat_whatever_array_a_model_gives(
    array: Any, datatype: str, expected: bytes
) -> None:
    response = InferResponse("1", "m", [InferOutput("y", list(array.shape), datatype, array)])

    assert v2_json.encode(response).body.endswith(b'"data":%b}]}' % expected)


def test_masked_integers_are_the_models_fault() -> None:
    array = np.ma.masked_array([1, 2], [False, True])
    response = InferResponse("1", "m", [InferOutput("y", [2], "INT64", array)])

    with pytest.raises(InferenceError, match="masked values"):
        v2_json.encode(response)


def test_a_copied_masked_array_is_nan_in_binary_form() -> None:
    output = InferOutput("y", [2], "FP32")

    output.set_data_from_numpy(np.ma.masked_array([0.5, 7.0], [False, True], dtype=np.float32))

    np.testing.assert_array_equal(output.as_numpy(), np.array([0.5, np.nan], np.float32))


def test_a_missing_date_is_null_in_v1() -> None:
    dates = np.array(["2020-01-02", "NaT"], "M8[D]")
    response = InferResponse("1", "m", [InferOutput("y", [2], "BYTES", dates)])

    assert v1_json.encode_response(response).body == b'{"predictions":["2020-01-02",null]}'
