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
