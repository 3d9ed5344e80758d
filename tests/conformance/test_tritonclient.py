"""The rows that an independent client can express: Triton's own, in JSON mode."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.testing import assert_array_equal
from tritonclient.utils import (
    InferenceServerException,
    np_to_triton_dtype,
    triton_to_np_dtype,
)

if TYPE_CHECKING:
    from tests.conformance.servers import RunningServer

ARRAYS = [
    pytest.param(np.array([[True, False]]), id="BOOL"),
    pytest.param(np.array([-128, 127], dtype=np.int8), id="INT8"),
    pytest.param(np.array([-(2**15), 2**15 - 1], dtype=np.int16), id="INT16"),
    pytest.param(np.array([-(2**31), 2**31 - 1], dtype=np.int32), id="INT32"),
    pytest.param(np.array([-(2**63), 2**63 - 1], dtype=np.int64), id="INT64"),
    pytest.param(np.array([0, 255], dtype=np.uint8), id="UINT8"),
    pytest.param(np.array([0, 2**16 - 1], dtype=np.uint16), id="UINT16"),
    pytest.param(np.array([0, 2**32 - 1], dtype=np.uint32), id="UINT32"),
    pytest.param(np.array([0, 2**64 - 1], dtype=np.uint64), id="UINT64"),
    pytest.param(np.array([[6.8], [-0.1]], dtype=np.float32), id="FP32"),
    pytest.param(np.array([[6.8, 5e-324]], dtype=np.float64), id="FP64"),
    pytest.param(np.array([["a"], ["ü"]], dtype=np.object_), id="BYTES"),
]


@pytest.fixture
def client(server: "RunningServer") -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield client
    client.close()


def test_tritonclient_finds_the_server_and_its_model_ready(
    server: "RunningServer", client: triton.InferenceServerClient
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(server.entry.model_name)


def test_tritonclient_finds_an_unknown_model_not_ready(
    server: "RunningServer", client: triton.InferenceServerClient
) -> None:
    assert not client.is_model_ready("InvalidModel")


def test_tritonclient_reads_the_metadata(
    server: "RunningServer", client: triton.InferenceServerClient
) -> None:
    assert client.get_server_metadata()["name"] == "kserve"
    assert client.get_model_metadata(server.entry.model_name) == server.entry.metadata


def test_tritonclient_infers(server: "RunningServer", client: triton.InferenceServerClient) -> None:
    expected = server.entry.v2_outputs[0]
    output = triton.InferRequestedOutput(expected["name"], binary_data=False)

    result = client.infer(
        server.entry.model_name, [_input(server)], outputs=[output], request_id="one"
    )

    assert result.get_response() == server.entry.v2_response("one")
    assert_array_equal(
        result.as_numpy(expected["name"]), np.array(expected["data"]).reshape(expected["shape"])
    )


def test_tritonclient_infers_with_a_prebuilt_body(
    server: "RunningServer", client: triton.InferenceServerClient
) -> None:
    body, json_length = client.generate_request_body(
        [_input(server)],
        outputs=[
            triton.InferRequestedOutput(server.entry.v2_outputs[0]["name"], binary_data=False)
        ],
    )

    response = server.request("POST", f"{server.entry.v2}/infer", body)

    assert json_length is None
    assert response.json()["outputs"] == server.entry.v2_outputs


def test_tritonclient_reads_the_reason_of_a_refusal(
    server: "RunningServer", client: triton.InferenceServerClient
) -> None:
    tensor = triton.InferInput("x", [2], "FP64")
    tensor.set_data_from_numpy(np.zeros(2), binary_data=False)

    with pytest.raises(InferenceServerException) as caught:
        client.infer("InvalidModel", [tensor])

    assert caught.value.message() == "Model with name InvalidModel does not exist."


@pytest.mark.parametrize("array", ARRAYS)
def test_tritonclient_gets_its_own_array_back(echo: "RunningServer", array: Any) -> None:
    tensor = triton.InferInput("x", list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, binary_data=False)
    output = triton.InferRequestedOutput("x", binary_data=False)

    with triton.InferenceServerClient(f"127.0.0.1:{echo.port}") as client:
        result = client.infer("echo", [tensor], outputs=[output])

    assert result.as_numpy("x").dtype == array.dtype
    assert_array_equal(result.as_numpy("x"), array)


def _input(server: "RunningServer") -> triton.InferInput:
    entry = server.entry.v2_request["inputs"][0]
    dtype = triton_to_np_dtype(entry["datatype"])
    array = np.array(entry["data"], dtype=dtype).reshape(entry["shape"])
    tensor = triton.InferInput(entry["name"], entry["shape"], entry["datatype"])
    tensor.set_data_from_numpy(array, binary_data=False)
    return tensor
