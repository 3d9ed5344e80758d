"""Parameters, by the names that KServe's SDK has for them."""

from typing import Any

import numpy as np
import pytest

from kserve.errors import InvalidInput
from kserve.protocol.grpc.grpc_predict_v2_pb2 import InferParameter, InferTensorContents
from kserve.protocol.infer_type import get_content, to_grpc_parameters, to_http_parameters


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(True, InferParameter(bool_param=True), id="bool"),
        pytest.param(-1, InferParameter(int64_param=-1), id="int"),
        pytest.param(1 << 63, InferParameter(uint64_param=1 << 63), id="int beyond INT64"),
        pytest.param(0.1, InferParameter(double_param=0.1), id="float"),
        pytest.param("é", InferParameter(string_param="é"), id="str"),
    ],
)
def test_values_travel_both_ways(value: Any, message: InferParameter) -> None:
    assert to_grpc_parameters({"p": value}) == {"p": message}
    assert to_http_parameters({"p": message}) == {"p": value}


def test_numpy_scalars_and_messages_travel() -> None:
    message = InferParameter(string_param="kept")

    encoded = to_grpc_parameters(
        {"b": np.bool_(True), "i": np.uint8(7), "f": np.float32(0.5), "m": message}
    )

    assert encoded == {
        "b": InferParameter(bool_param=True),
        "i": InferParameter(int64_param=7),
        "f": InferParameter(double_param=0.5),
        "m": message,
    }


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        to_grpc_parameters({"p": (1,)})

    assert str(caught.value) == ("parameter 'p': gRPC carries bool, int, float and str, got tuple")


def test_a_message_without_a_value_is_left_out_and_values_are_kept() -> None:
    assert to_http_parameters({"empty": InferParameter(), "plain": [1]}) == {"plain": [1]}


def test_content_is_the_list_of_the_datatypes_field() -> None:
    contents = InferTensorContents(int_contents=[1, 2], bytes_contents=[b"a"])

    assert get_content("INT8", contents) == [1, 2]
    assert get_content("BYTES", contents) == [b"a"]
    assert get_content("FP16", contents) == []


def test_content_of_an_unknown_datatype_is_refused() -> None:
    with pytest.raises(InvalidInput, match="invalid content type 'FLOAT'"):
        get_content("FLOAT", InferTensorContents())
