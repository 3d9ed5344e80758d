"""The gRPC rows: Triton's client against every server, and that all wires give one answer."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

if TYPE_CHECKING:
    from tests.conformance.servers import RunningServer

RPC_S = 10


@pytest.fixture
def address(server: "RunningServer") -> str:
    return f"127.0.0.1:{server.process.grpc_port}"


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as client:
        yield client


def inputs_of(server: "RunningServer") -> list[triton.InferInput]:
    tensors = []
    for entry in server.entry.v2_request["inputs"]:
        values = entry["data"]
        if entry["datatype"] == "BYTES":
            values = [text.encode() for text in values]
        array = np.array(values, triton_to_np_dtype(entry["datatype"])).reshape(entry["shape"])
        tensor = triton.InferInput(entry["name"], entry["shape"], entry["datatype"])
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def values_of(result: triton.InferResult, output: dict[str, Any]) -> list[Any]:
    values = result.as_numpy(output["name"]).ravel().tolist()
    return [v.decode() for v in values] if output["datatype"] == "BYTES" else values


def test_the_server_and_its_model_are_ready(
    server: "RunningServer", client: triton.InferenceServerClient, address: str
) -> None:
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        health = {
            name: stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=RPC_S).status
            for name in ("", server.entry.model_name)
        }

    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(server.entry.model_name)
    assert set(health.values()) == {health_pb2.HealthCheckResponse.SERVING}


def test_metadata_is_that_of_rest(
    server: "RunningServer", client: triton.InferenceServerClient
) -> None:
    metadata = client.get_model_metadata(server.entry.model_name)

    expected = server.entry.metadata
    assert (metadata.name, metadata.platform) == (expected["name"], expected["platform"])
    assert list(metadata.versions) == (expected["versions"] or [])
    for got, key in ((metadata.inputs, "inputs"), (metadata.outputs, "outputs")):
        assert [
            {"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in got
        ] == expected[key]


def test_a_prediction_is_that_of_rest(
    server: "RunningServer", client: triton.InferenceServerClient
) -> None:
    result = client.infer(server.entry.model_name, inputs_of(server), request_id="7")

    response = result.get_response()
    assert (response.model_name, response.id) == (server.entry.model_name, "7")
    assert [
        {"name": o.name, "datatype": o.datatype, "shape": list(o.shape)} for o in response.outputs
    ] == [{key: o[key] for key in ("name", "datatype", "shape")} for o in server.entry.v2_outputs]
    assert [values_of(result, o) for o in server.entry.v2_outputs] == [
        o["data"] for o in server.entry.v2_outputs
    ]


def test_an_unknown_model_is_not_found(
    server: "RunningServer", client: triton.InferenceServerClient
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("InvalidModel", inputs_of(server))

    assert caught.value.status() == str(grpc.StatusCode.NOT_FOUND)
    assert caught.value.message() == "Model with name InvalidModel does not exist."
